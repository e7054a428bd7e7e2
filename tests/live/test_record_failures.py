"""Recordings whose writing fails or whose names are taken: the command goes on, what was kept is kept."""

from __future__ import annotations

import mmap
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import polars as pl
import pytest

from tests.endurance.faults import small_disk
from tests.endurance.workload import account, command, emitted, finished, start_recorder
from tests.live.recording import ended, of_kind, wait_for
from tracekit.errors import UsageError
from tracekit.probes.plan import RecordPlan
from tracekit.probes.run import record
from tracekit.trace import Meta, Trace, TraceWriter, open_trace, recover

pytestmark = pytest.mark.live("bpf", "root")


def then_told(work: list[str], proof: Path) -> list[str]:
    """The command, and then a sign that it came to its own end."""
    return ["sh", "-c", f'"$@"; touch {proof}; exit 7', "sh", *work]


def test_a_full_disk_ends_the_recording_and_not_the_command(tmp_path: Path) -> None:
    counter, proof = tmp_path / "counter", tmp_path / "proof"
    with small_disk(tmp_path, "600k") as disk:
        path = disk / "x.trace"
        work = command(counter, 10**9, 100_000, seconds=6)
        said = finished(start_recorder(path, "--", *then_told(work, proof)), 1)
        assert proof.exists()
        assert "recording has stopped, the command goes on" in said
        assert "the disk is full" in said
        assert "events are safe in" in said
        copy = shutil.copytree(path, tmp_path / "copy.trace")
    recover(copy)
    trace = open_trace(copy)
    found = account(trace, counter)
    assert 0 < found.stored < found.emitted
    assert trace.lost is None
    assert not (tmp_path / "disk" / "x.trace.marks").exists()


def test_a_signal_still_ends_a_command_that_outlived_its_recording(tmp_path: Path) -> None:
    path, counter = tmp_path / "x.trace", tmp_path / "counter"
    recorder = start_recorder(path, "--", *command(counter, 10**9, 1000, seconds=60))
    with ended(recorder):
        wait_for(lambda: emitted(counter)[1] > 0)
        shutil.rmtree(path)
        assert recorder.stderr is not None
        assert "the command goes on" in recorder.stderr.readline()
        before = emitted(counter)[1]
        wait_for(lambda: emitted(counter)[1] > before + 500)
        recorder.send_signal(signal.SIGTERM)
        asked = time.monotonic()
        assert "what was recorded went with it" in finished(recorder, 1)
        assert time.monotonic() - asked < 10


BEAT = """
import mmap, pathlib, sys, time
m = mmap.mmap(-1, 1 << 20)
for beat in range(300):
    m.madvise(mmap.MADV_DONTNEED, 4096 * (beat % 256), 4096)
    if beat == 50 and sys.argv[1:]: pathlib.Path(sys.argv[1]).touch()
    time.sleep(0.01)
"""
BEATING = (sys.executable, "-c", BEAT)


def beats(*traces: Trace) -> list[int]:
    rows = [of_kind(trace, "madvise").filter(pl.col("arg") == mmap.MADV_DONTNEED)["hva"] for trace in traces]
    return [hva for trace in rows for hva in trace]


def in_a_row(addresses: list[int]) -> bool:
    return {(b - a) % (1 << 20) for a, b in pairwise(addresses)} == {4096}


def precious(path: Path) -> None:
    with TraceWriter(path, Meta(source="synthetic", notes=["precious"])):
        pass


def is_precious(path: Path) -> bool:
    return "precious" in open_trace(path).meta.notes


def test_a_series_passes_over_names_that_are_taken_while_it_is_recorded(tmp_path: Path) -> None:
    recorder = start_recorder(tmp_path / "s.trace", "--rotate", "0.7", "--", *BEATING)
    with ended(recorder):
        wait_for((tmp_path / "s-0001.trace" / "meta.json").exists)
        precious(tmp_path / "s-0003.trace")
        said = finished(recorder)
    assert is_precious(tmp_path / "s-0003.trace")
    series = [path for path in sorted(tmp_path.glob("s-*.trace")) if path.name != "s-0003.trace"]
    assert len(series) >= 3
    assert f"next: tracekit info {series[-1]}" in said
    traces = [open_trace(path) for path in series]
    addresses = beats(*traces)
    assert len(addresses) == 300
    assert in_a_row(addresses)
    # Each says what recording had cost when it was closed.
    assert all(trace.meta.extra["cost"]["measured_s"] > 0 for trace in traces)


def test_a_series_of_which_a_name_is_taken_is_not_begun(tmp_path: Path) -> None:
    precious(tmp_path / "s-0004.trace")
    with pytest.raises(UsageError, match=r"s-0004\.trace exists"):
        record(RecordPlan(out=tmp_path / "s.trace", command=BEATING, rotate_seconds=1))
    assert [path.name for path in tmp_path.iterdir()] == ["s-0004.trace"]


def test_no_trigger_costs_a_flight_recorder_what_it_keeps(tmp_path: Path) -> None:
    """A dump's name is taken; then the disk is full; then it is not."""
    with small_disk(tmp_path, "8M") as disk:
        path = disk / "f.trace"
        precious(disk / "f-0001.trace")
        recorder = start_recorder(path, "--keep-last", "30", "--", *BEATING, str(tmp_path / "half"))
        with ended(recorder):
            wait_for((tmp_path / "half").exists)
            time.sleep(0.2)
            recorder.send_signal(signal.SIGUSR1)
            wait_for((disk / "f-0002.trace" / "losses.arrow").exists)
            filling = disk / "filling"
            with suppress(OSError):  # no space left
                filling.write_bytes(bytes(8 << 20))
            assert filling.stat().st_size > 0
            recorder.send_signal(signal.SIGUSR1)
            assert recorder.stderr is not None
            assert "into" in recorder.stderr.readline()
            failed = recorder.stderr.readline()
            assert "No space left on device" in failed
            assert "the recording goes on" in failed
            filling.unlink()
            assert not (disk / "f-0003.trace").exists()
            finished(recorder)
        dump, last = open_trace(disk / "f-0002.trace"), open_trace(path)
        assert is_precious(disk / "f-0001.trace")
        assert in_a_row(beats(dump))
        assert len(beats(last)) == 300
        assert dump.meta.extra["cost"]["measured_s"] > 0


def test_a_trigger_before_anything_is_recorded_ends_nothing(tmp_path: Path) -> None:
    recorder = start_recorder(tmp_path / "f.trace", "--keep-last", "30", "--", *BEATING)
    status = Path(f"/proc/{recorder.pid}/status")
    with ended(recorder):
        wait_for(lambda: bool(int(status.read_text().split("SigCgt:")[1].split()[0], 16) >> 14 & 1))
        for _ in range(50):
            recorder.send_signal(signal.SIGUSR1)
            time.sleep(0.02)
        finished(recorder)
    assert len(beats(open_trace(tmp_path / "f.trace"))) == 300


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_hangup_finalises_like_any_signal(tmp_path: Path, number: signal.Signals) -> None:
    path = tmp_path / "x.trace"
    recorder = start_recorder(path, "--", *BEATING)
    with ended(recorder):
        wait_for((path / "meta.json").exists)
        time.sleep(0.5)
        recorder.send_signal(number)
        finished(recorder)
    assert open_trace(path).meta.finalised
    assert [item.name for item in tmp_path.iterdir()] == ["x.trace"]


def test_a_killed_recording_knows_what_it_had_cost(tmp_path: Path) -> None:
    path = tmp_path / "x.trace"
    sooner = "from tracekit.probes import recorder; recorder._SAVE_NS = 10**9"
    sooner += "; from tracekit.cli import main; main()"
    arguments = [sys.executable, "-c", sooner, "record", "-o", str(path), "--", *BEATING]
    with ended(subprocess.Popen(arguments)) as killed:
        wait_for(lambda: "measured_s" in (path / "meta.json").read_text())
        killed.kill()
    recover(path)
    assert open_trace(path).meta.extra["cost"]["measured_s"] > 0


def test_a_closed_stderr_costs_only_what_would_be_said_there(tmp_path: Path) -> None:
    path = tmp_path / "x.trace"
    closed = ["sh", "-c", 'exec "$@" 2>&-', "sh", sys.executable, "-m", "tracekit", "record", "-o", str(path)]
    assert subprocess.run([*closed, "--", *BEATING], check=False, timeout=60).returncode == 0
    assert len(beats(open_trace(path))) == 300


def test_an_error_in_a_pipe_is_one_line_however_long_its_path(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 200) / "x.trace"
    said = finished(start_recorder(path, "--", "true"), 2)
    assert said.splitlines()[0] == f"tracekit: no folder {path.parent} to put x.trace into"


def test_a_process_without_a_vm_is_remarked_on(tmp_path: Path) -> None:
    path = tmp_path / "x.trace"
    with ended(subprocess.Popen(BEATING)) as process:
        said = finished(start_recorder(path, "-d", "0.5", "-p", str(process.pid)))
    note = f"process {process.pid} has no KVM virtual machine: only its own faults and calls are recorded"
    assert note in said
    assert note in open_trace(path).meta.notes


def test_a_trace_that_is_moved_while_it_is_written_is_named_where_it_is(tmp_path: Path) -> None:
    recorder = start_recorder(tmp_path / "x.trace", "--", *BEATING)
    with ended(recorder):
        wait_for((tmp_path / "x.trace" / "journal.ndjson").exists)
        time.sleep(0.5)
        (tmp_path / "x.trace").rename(tmp_path / "y.trace")
        said = finished(recorder)
    assert f"next: tracekit info {tmp_path / 'y.trace'}" in said
    assert len(beats(open_trace(tmp_path / "y.trace"))) == 300
