"""What the recorder learns of host, processes and losses, from made-up sysfs trees and tables."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tracekit.errors import CapabilityError, UsageError
from tracekit.probes import bcc_package, btf, constants, doctor, host, samples, target
from tracekit.probes.catalogue import HOST_PROBES
from tracekit.probes.ledger import LossLedger
from tracekit.probes.losses import Loss, LossReader
from tracekit.probes.plan import RecordPlan, RecordReport
from tracekit.probes.tracefs import Tracepoint
from tracekit.probes.wire import LOST


def test_a_process_that_is_named_twice_is_one_vm() -> None:
    assert RecordPlan(out=Path("x.trace"), pids=(7, 8, 7)).pids == (7, 8)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"kvm_intel/parameters/ept": "Y"}, ("ept", "kvm_intel")),
        ({"kvm_intel/parameters/ept": "N"}, ("shadow", "kvm_intel")),
        ({"kvm_amd/parameters/npt": "1"}, ("npt", "kvm_amd")),
        ({"kvm_amd/parameters/npt": "0"}, ("shadow", "kvm_amd")),
        ({"kvm/parameters/x": "", "kvm_pvm/parameters/x": ""}, ("shadow", "kvm_pvm")),
        ({"ext4/parameters/x": ""}, ("none", "")),
    ],
)
def test_mmu_mode_is_what_the_module_says(
    tmp_path: Path, files: dict[str, str], expected: tuple[str, str]
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(f"{text}\n")
    assert host.mmu_mode(tmp_path) == expected


def test_the_clock_offset_is_right_to_a_millisecond() -> None:
    clock = host.clock()
    error = time.time_ns() - time.monotonic_ns() - clock["realtime_offset_ns"]
    assert abs(error) < 1_000_000


ALL_CONSTANTS = {name for probe in HOST_PROBES for name in probe.constants}


class Table(dict[int, Any]):
    Leaf = staticmethod(int)


def loss(count: int, first: int, last: int, epoch: int) -> SimpleNamespace:
    return SimpleNamespace(count=count, first_ts=first, last_ts=last, epoch=epoch)


def test_losses_add_up_and_keep_their_time_bounds() -> None:
    none = loss(0, 0, 0, 0)
    table = Table({reason: [none, none] for reason in range(len(LOST))})
    epoch = Table({0: 0})
    reader = LossReader(table, epoch)
    assert reader.read() == []
    assert epoch[0] == 1
    ring, thread = LOST.index("ring_full: ept_violation"), LOST.index("untraced_thread")
    table[ring] = [none, loss(5, 100, 140, 1)]
    table[thread] = [loss(1, 7, 7, 1), none]
    assert {(f.cpu, f.t0_ns, f.t1_ns, f.lost, f.reason) for f in reader.read()} == {
        (1, 100, 140, 5, "ring_full: ept_violation"),
        (0, 7, 7, None, "untraced_thread"),
    }
    later = time.monotonic_ns() + 1_000_000_000
    table[ring] = [none, loss(17, later - 5, later, 2)]
    (second,) = reader.read()
    assert (second.lost, second.t0_ns, second.t1_ns) == (12, later - 5, later)
    # Pages that may have been a guest's or anybody's: how many were is not known, only how many at most.
    table[LOST.index("swap_out_unplaced")] = [none, loss(3, later, later, 2)]
    (bound,) = reader.read()
    assert (bound.lost, bound.at_most) == (None, 3)
    ledger = LossLedger()
    ledger.add(bound)
    ledger.add(bound)
    assert ledger.by_reason == {"swap_out_unplaced (at most 6)": None}
    # A loss noted while the reader read belongs to the epoch before: its time is bounded, not known.
    table[ring] = [none, loss(18, 1, later, 2)]
    (third,) = reader.read()
    assert third.lost == 1
    assert 1 < third.t0_ns <= third.t1_ns == later
    assert reader.read() == []


TIMES = ("seconds", "rotate_seconds", "keep_last_seconds")


def test_a_plan_must_make_sense(tmp_path: Path) -> None:
    out = tmp_path / "x.trace"
    for wrong in (
        {"command": ("true",), "pids": (1,)},
        {},
        {"command": ("true",), "ring_bytes": 3 << 20},
        {"command": ("true",), "seconds": 0.0},
        {"command": ("true",), "max_bytes": 0},
        {"command": ("true",), "rotate_seconds": 1.0, "keep_last_seconds": 1.0},
        {"guest": True, "pids": (1,)},
        {"guest": True, "monitor": tmp_path},
        {"command": ("true",), "rotate_keep": 3},
        {"command": ("true",), "ring_bytes": 4 << 30},
        {"command": ("true",), "max_bytes": 1, "keep_last_seconds": 1.0},
        {"command": ("true",), "out": Path()},
        {"command": ("true",), "out": Path("..")},
        *({"guest": True, name: value} for name in TIMES for value in (math.nan, math.inf, -1.0)),
    ):
        with pytest.raises(UsageError):
            RecordPlan(**{"out": out, **wrong})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("lost", "words"), [(0, "0 lost"), (1234, "1,234 lost"), (None, "unknown number lost")]
)
def test_the_report_says_what_was_lost(lost: int | None, words: str) -> None:
    ledger = LossLedger()
    if lost != 0:
        ledger.add(Loss(3, 2_000_000_000, 2_500_000_000, lost, "ring_full"))
    report = RecordReport(Path("x.trace"), rows=5, lost=ledger.lost, where=ledger.lines(1_000_000_000))
    text = "\n".join(report.lines())
    assert words in text
    assert ("ring_full, CPU 3, 1.000 s to 1.500 s" in text) is (lost != 0)
    assert report.to_json()["lost"] == lost


def test_samples_of_this_process_are_what_proc_says() -> None:
    metrics = dict(samples.sample_process(os.getpid()))
    assert metrics["rss_bytes"] > 10_000_000
    assert metrics["minor_faults"] > 0
    assert metrics["pss_bytes"] <= metrics["rss_bytes"] * 1.2
    assert dict(samples.sample_process(2**22 + 1)) == {}
    of_host = dict(samples.sample_host())
    assert of_host["host_available_bytes"] > 0
    assert of_host["runnable_threads"] >= 0
    assert of_host["cpus"] == os.cpu_count()


def test_without_bcc_the_error_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bcc_package, "_FOLDERS", ("/nowhere/bcc",))
    bcc_package.load_bcc.cache_clear()
    before = list(sys.path)
    try:
        with pytest.raises(CapabilityError) as error:
            bcc_package.load_bcc()
    finally:
        bcc_package.load_bcc.cache_clear()
    assert "apt-get install python3-bpfcc" in error.value.hint
    assert sys.path == before


def test_a_process_that_is_not_there_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="4194305"):
        target.require_processes([2**22 + 1])


def test_a_thread_is_told_from_its_process() -> None:
    target.require_processes([os.getpid()])
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    try:
        with pytest.raises(UsageError, match=f"thread of process {os.getpid()}") as refused:
            target.require_processes([thread.native_id or 0])
    finally:
        done.set()
        thread.join()
    assert refused.value.hint == f"-p {os.getpid()}"


def test_a_program_that_may_not_be_executed_is_told_from_one_that_is_not_there(tmp_path: Path) -> None:
    script = tmp_path / "run it"
    script.write_text("#!/bin/sh\n")
    with pytest.raises(UsageError, match="not executable") as refused:
        target.start_child([str(script)])
    assert refused.value.hint == f"chmod +x '{script}'"
    with pytest.raises(UsageError, match="no program"):
        target.start_child([str(tmp_path / "nothing")])


def test_a_held_back_command_ends_with_its_recorder(tmp_path: Path) -> None:
    proof = tmp_path / "started"
    child = target.start_child(["touch", str(proof)])
    deadline = time.monotonic() + 10
    command_line = Path(f"/proc/{child.pid}/cmdline")
    while not target.is_waiting(command_line.read_text().split("\0")) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert target.is_waiting(command_line.read_text().split("\0"))
    assert child.poll() is None
    assert child.end() != 0
    assert not proof.exists()
    child = target.start_child(["touch", str(proof)])
    child.release()
    deadline = time.monotonic() + 10
    while child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert child.poll() == 0
    assert proof.exists()


def test_ctrl_c_ends_a_held_back_command_without_a_word(capfd: pytest.CaptureFixture[str]) -> None:
    child = target.start_child(["true"])
    time.sleep(0.5)  # Python has started and waits
    os.kill(child.pid, signal.SIGINT)
    deadline = time.monotonic() + 10
    while child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert child.end() == 128 + signal.SIGINT
    assert capfd.readouterr().err == ""


def test_the_doctor_names_what_mends_each_thing_that_is_not_ok() -> None:
    checks = doctor.examine()
    assert {"permission", "kernel", "bcc", "tracefs", "KVM"} <= {check.name for check in checks}
    for check in checks:
        assert (check.state == "ok") == (check.mend == ""), check
        assert check.found


@pytest.mark.parametrize(
    ("hooked", "expected"),
    [
        (
            "swap_readpage",
            {
                "memcg": None,
                "memcg_function": ("ok", "swap_in, swap_out, huge pages of host_fault (by swap_readpage)"),
                "swap_io": ("ok", "swap_in, swap_out (by swap_readpage)"),
                "written_out": None,
            },
        ),
        (
            "",
            {
                "memcg": None,
                "memcg_function": ("limited", "no function __count_memcg_events that can be hooked"),
                "swap_io": ("limited", "no function swap_readpage or swap_read_folio that can be hooked, "),
                "written_out": ("ok", "swap_out"),
            },
        ),
    ],
)
def test_the_doctor_says_what_tells_swaps_on_a_kernel_without_the_tracepoint(
    monkeypatch: pytest.MonkeyPatch, hooked: str, expected: dict[str, tuple[str, str] | None]
) -> None:
    def kernel(category: str, event: str) -> Tracepoint | None:
        if category == "memcg" or (category == "function" and not hooked):
            return None
        return Tracepoint(category, event, (), function=hooked if category == "function" else "")

    monkeypatch.setattr(doctor, "plain", kernel)
    monkeypatch.setattr(doctor, "kernel_constants", lambda *_: dict.fromkeys(ALL_CONSTANTS, 0))
    found = {check.name: check for check in doctor.examine()}
    for name, says in expected.items():
        check = found.get(f"probe {name}")
        assert (check is None) == (says is None), name
        if check and says:
            assert check.state == says[0]
            assert check.found.startswith(says[1])


def test_the_doctor_sees_a_missing_bcc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bcc_package, "_FOLDERS", ())
    bcc_package.load_bcc.cache_clear()
    try:
        found = {check.name: check for check in doctor.examine()}
    finally:
        bcc_package.load_bcc.cache_clear()
    assert found["bcc"].state == "missing"
    assert "python3-bpfcc" in found["bcc"].mend


@pytest.mark.parametrize(
    ("kdamonds", "physical"),
    [
        ([], False),
        ([("on", ["paddr"])], True),
        ([("on", ["paddr", "vaddr"])], False),
        ([("off", ["paddr"])], False),
        ([("off", ["vaddr"]), ("on", ["paddr"])], True),
    ],
)
def test_damon_is_read_only_where_its_addresses_are_physical(
    tmp_path: Path, kdamonds: list[tuple[str, list[str]]], physical: bool
) -> None:
    for number, (state, operations) in enumerate(kdamonds):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "state").write_text(f"{state}\n")
        for context, operation in enumerate(operations):
            (folder / "contexts" / str(context)).mkdir(parents=True)
            (folder / "contexts" / str(context) / "operations").write_text(f"{operation}\n")
    assert constants.damon_is_physical(tmp_path) is physical


@pytest.mark.parametrize(
    ("command_line", "config", "zeroes"),
    [
        ("ro quiet", "", False),
        ("init_on_alloc=1", "", True),
        ("init_on_alloc=0", "CONFIG_INIT_ON_ALLOC_DEFAULT_ON=y", False),
        ("ro", "CONFIG_INIT_ON_ALLOC_DEFAULT_ON=y", True),
        ("ro", "# CONFIG_INIT_ON_ALLOC_DEFAULT_ON is not set", False),
    ],
)
def test_init_on_alloc_is_the_command_lines_word_before_the_builds(
    command_line: str, config: str, zeroes: bool
) -> None:
    assert constants.init_on_alloc(command_line, config) is zeroes


def test_btf_tells_offsets_and_values_that_a_program_can_check() -> None:
    assert btf.field_offset("list_head", "prev") in (8, None)
    assert btf.enum_value("zone_type", "no_such_zone") is None
    assert btf.field_offset("no_such_structure", "x") is None


def test_a_signal_that_comes_as_a_command_is_let_go_closes_nothing_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    close = os.close

    def interrupted(descriptor: int) -> None:
        close(descriptor)
        raise KeyboardInterrupt

    reader, gate = os.pipe()
    child = target.Child(subprocess.Popen(["sleep", "60"]), gate)
    monkeypatch.setattr(os, "close", interrupted)
    with pytest.raises(KeyboardInterrupt):
        child.release()
    monkeypatch.undo()
    assert os.read(reader, 2) == b"\n"
    assert child.end() == 143  # and not "Bad file descriptor"
    os.close(reader)
