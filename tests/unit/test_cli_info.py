"""`tracekit info` and `tracekit recover`: true numbers, inert text, the right exit codes."""

import io
import json
import shutil
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass

import numpy as np
import pytest

from tracekit.cli import main
from tracekit.trace import Meta, TraceWriter, events_batch, open_trace
from tracekit.trace.summary import LATENCY_RESOLUTION, TIME_SLICES, summarise


@dataclass
class Ran:
    returncode: int
    stdout: str
    stderr: str


def run(*arguments):
    """Run a command line in this process: a fresh one each time would take a second."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["tracekit", *map(str, arguments)])
        patch.setenv("COLUMNS", "80")
        patch.setenv("NO_COLOR", "1")
        with pytest.raises(SystemExit) as stopped:
            main()
    return Ran(int(stopped.value.code or 0), out.getvalue(), err.getvalue())


@pytest.fixture
def trace(tmp_path):
    path = tmp_path / "x.trace"
    meta = Meta(
        source="recorded",
        host={
            "kernel": "6.18",
            "mmu_mode": "npt",
            "kvm_module": "kvm_amd",
            "cpus": 2,
            "memory_bytes": 24 << 30,
        },
        vms=[{"pid": 42, "vcpus": 2, "argv": ["qemu", "[bold]x[/bold]", "\x1b[2J\x1b]0;title\x07", "a\nb"]}],
        clock={"name": "CLOCK_MONOTONIC", "realtime_offset_ns": 1_700_000_000_000_000_000},
        probes={
            "active": ["kvm_exit"],
            "refused": {"age": "no \x1b[31mtracepoint[/]"},
            "functions": {"swap_io": ["swap_readpage", "[bold]x"]},
        },
        command=["tracekit", "record", "[red]"],
    )
    random = np.random.default_rng(4)
    with TraceWriter(path, meta) as writer:
        n = 10_007
        latency = random.lognormal(8, 2, n).astype(np.uint64)
        latency[:3] = (0, 2**63, 1)
        valid = random.random(n) < 0.9
        valid[:3] = True
        vcpu = random.integers(0, 2, n)
        writer.append(
            events_batch(
                ts_ns=np.arange(n) * 1000,
                kind="ept_violation",
                vcpu=vcpu,
                latency_ns=latency,
                gfn=np.arange(n),
                valid={"latency_ns": valid},
            )
        )
        writer.append(events_batch(ts_ns=np.arange(211) * 1000, kind="madvise", vm=1))
        writer.add_memslot(vm=0, slot=3, gpa=0, size_bytes=1 << 30, hva=0x7000, from_ns=0, known_by="btf")
        for second, value in enumerate((5.0, 9.0, 7.0)):
            writer.add_sample(second * 10**9, 0, "rss_bytes", value)
    return path, latency, valid, vcpu


def test_the_numbers_are_those_of_a_slow_count(trace):
    path, latency, valid, vcpu = trace
    ran = run("info", path, "--json")
    assert ran.returncode == 0
    told = json.loads(ran.stdout)
    assert (told["events"], told["lost"], told["span_ns"], told["source"]) == (
        10_218,
        0,
        10_006_000,
        "recorded",
    )
    faults, advice = told["kinds"]
    timed = np.sort(latency[valid])
    assert (faults["kind"], faults["events"], faults["with_latency"]) == (
        "ept_violation",
        10_007,
        valid.sum(),
    )
    assert faults["latency_max_ns"] == 2**63
    assert faults["latency_sum_ns"] == sum(timed.tolist())
    for share, name in ((0.5, "latency_p50_ns"), (0.99, "latency_p99_ns")):
        exact = int(timed[int(np.ceil(share * len(timed))) - 1])
        assert abs(faults[name] - exact) <= exact * LATENCY_RESOLUTION + 1
    assert faults["per_second"] == pytest.approx(10_007 / 10.006e-3)
    assert (advice["events"], advice["latency_p50_ns"]) == (211, None)
    slices = np.arange(10_007) * 1000 // (10_006_000 // TIME_SLICES + 1)
    assert faults["over_time"] == np.bincount(slices, minlength=TIME_SLICES).tolist()
    assert (sum(advice["over_time"]), advice["over_time"][2:]) == (211, [0] * (TIME_SLICES - 2))
    assert told["vcpus"] == [
        {"vm": 0, "vcpu": 0, "events": int((vcpu == 0).sum())},
        {"vm": 0, "vcpu": 1, "events": int((vcpu == 1).sum())},
        {"vm": 1, "vcpu": None, "events": 211},
    ]
    assert told["samples"] == [
        {"vm": 0, "metric": "rss_bytes", "count": 3, "min": 5.0, "max": 9.0, "last": 7.0}
    ]
    assert told["memslots"][0]["known_by"] == "btf"
    size = sum(part.stat().st_size for part in (path / "events").iterdir())
    assert (told["bytes"], told["bytes_per_event"]) == (size, pytest.approx(size / 10_218))
    assert told["started"] == "2023-11-14T22:13:20+00:00"


def test_the_page_fits_80_columns_names_the_next_command_and_is_inert(trace):
    path = trace[0]
    ran = run("info", path)
    assert ran.returncode == 0
    assert max(map(len, ran.stdout.splitlines())) <= 80
    assert f"next: tracekit replay {path} --scenario zeroing" in ran.stderr.replace("\n", " ").replace(
        "  ", " "
    )
    shown = " ".join(ran.stdout.split())
    for words in (
        "npt (kvm_amd)",
        "0 lost",
        "qemu [bold]x[/bold] \\x1b[2J\\x1b]0;title\\x07 a\\nb",
        "24 GiB",
        "Events over time",
        "█" * TIME_SLICES,
        "kvm_exit",
        "swap_io: swap_readpage, [bold]x",
    ):
        assert words in shown, words
    assert "\x1b" not in ran.stdout
    assert "\x07" not in ran.stdout


def test_synthetic_and_losses_cannot_be_overlooked(tmp_path):
    path = tmp_path / "x.trace"
    with TraceWriter(path, Meta(source="synthetic", start_ns=0)) as writer:
        writer.append(events_batch(ts_ns=[1, 2], kind="map"))
        writer.add_loss(3, 0, 2, 2, "ring [red]full")
    ran = run("info", path)
    assert ran.stdout.startswith("SYNTHETIC")
    assert "LOST: 2 events (50.00% of all)" in ran.stdout
    assert "ring [red]full" in ran.stdout
    with TraceWriter(path, Meta(), force=True) as writer:
        writer.add_loss(None, 0, 2, None, "stopped")
    ran = run("info", path)
    assert "LOST: an unknown number" in ran.stdout
    assert json.loads(run("info", path, "--json").stdout)["lost"] is None


def test_a_loss_that_lasts_hides_no_other(tmp_path):
    """Twenty entries of two CPUs, and then one for another reason: only twelve lines are shown."""
    path = tmp_path / "x.trace"
    with TraceWriter(path, Meta(start_ns=0)) as writer:
        writer.append(events_batch(ts_ns=[1, 50], kind="map"))
        for at in range(20):
            writer.add_loss(at % 2, at, at + 1, 7, "ring_full: map")
            writer.add_loss(None, at, at + 1, None, "nested BPF programs (at most 11)")
        writer.add_loss(None, 30, 40, 3, "the other")
    shown = " ".join(run("info", path).stdout.split())
    assert shown.count("ring_full: map") == 2
    assert "70 0" in shown
    assert "nested BPF programs (at most 220)" in shown
    assert "the other" in shown


def test_no_trace_not_a_trace_a_newer_one_an_unfinished_one(trace, tmp_path):
    path = trace[0]
    ran = run("info", tmp_path / "y.trace")
    assert (ran.returncode, ran.stdout) == (2, "")
    assert "no trace at" in ran.stderr
    assert f"tracekitinfo{path}" in "".join(ran.stderr.split())  # a command that works: the nearest trace
    (tmp_path / "text").write_text("mine")
    assert run("info", tmp_path / "text").returncode == 2
    meta = json.loads((path / "meta.json").read_text())
    (path / "meta.json").write_text(json.dumps({**meta, "schema_version": 99}))
    ran = run("info", path)
    assert ran.returncode == 2
    assert "newer tracekit" in " ".join(ran.stderr.split())
    (path / "meta.json").write_text(json.dumps({**meta, "finalised": False}))
    ran = run("info", path)
    assert ran.returncode == 4
    assert "tracekit recover" in " ".join(ran.stderr.split())


def test_recover_tells_what_is_missing_by_text_json_and_exit_code(tmp_path):
    writer = TraceWriter(tmp_path / "x.trace", Meta())
    writer.append(events_batch(ts_ns=[1, 2, 3], kind="map"))
    writer.flush(everything=True)
    shutil.copytree(tmp_path / "x.trace", tmp_path / "y.trace")
    writer.close()
    ran = run("recover", tmp_path / "y.trace")
    assert ran.returncode == 4
    assert "3 events are whole, 3 of them out of unfinished" in " ".join(ran.stdout.split())
    assert "an unknown number of events from 3 to 1000000003 ns: crash" in " ".join(ran.stderr.split())
    told = json.loads(run("recover", tmp_path / "y.trace", "--json").stdout)
    assert (told["rows"], told["lost"], told["whole"], told["changed"]) == (3, None, False, False)
    ran = run("recover", tmp_path / "x.trace")
    assert ran.returncode == 0
    assert "nothing had to be done" in ran.stdout


def test_counting_does_not_depend_on_how_the_events_are_batched(trace, monkeypatch):
    opened = open_trace(trace[0])
    whole = summarise(opened)
    batches = opened.batches
    monkeypatch.setattr(opened, "batches", lambda columns: batches(columns, batch_rows=97))
    assert summarise(opened) == whole
