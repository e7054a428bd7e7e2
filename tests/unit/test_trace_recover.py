"""Whatever a crash leaves: every whole batch comes back, never a wrong row, and the ledger tells the rest."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tracekit.errors import DamagedError, FailedError, UsageError
from tracekit.trace import Meta, TraceWriter, events_batch, open_trace, recover
from tracekit.trace.framing import FrameReader
from tracekit.trace.part import PartWriter
from tracekit.trace.recovery import CRASH_NS
from tracekit.trace.schema import EVENTS

PART = "events/00000.arrow.part"
FRAMES = 3
ROWS = 7


def rows(start, count=ROWS):
    return events_batch(
        ts_ns=np.arange(start, start + count), kind="page_alloc", gfn=np.arange(count) * 3, flags=2
    )


def write_frames(path, frames=FRAMES, **options):
    """Return a writer with that many flushed frames, and the size of the part after each."""
    writer = TraceWriter(path, Meta(source="recorded", start_ns=0), **options)
    sizes = []
    for frame in range(frames):
        writer.append(rows(frame * 100))
        writer.flush(everything=True)
        sizes.append((path / PART).stat().st_size)
    return writer, sizes


@pytest.fixture
def no_sync(monkeypatch):
    """Durability is not what these tests look at, and thousands of syncs take a minute."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    monkeypatch.setattr(os, "fdatasync", lambda fd: None)


@pytest.fixture
def killed(tmp_path):
    """A trace whose writer vanished after three flushes: (path, sizes of the part, its rows)."""
    path = tmp_path / "killed.trace"
    writer, sizes = write_frames(path)
    copy = tmp_path / "copy.trace"
    shutil.copytree(path, copy)
    writer.abort()
    truth = pa.concat_batches([rows(frame * 100) for frame in range(FRAMES)])
    return copy, sizes, truth


def contents(trace):
    batches = list(trace.batches())
    return pa.concat_batches(batches) if batches else pa.RecordBatch.from_pylist([], schema=EVENTS)


def test_a_killed_recording_keeps_every_flushed_row(killed):
    path, _, truth = killed
    with pytest.raises(DamagedError, match="never finished") as refused:
        open_trace(path)
    assert refused.value.hint == f"tracekit recover {path}"
    report = recover(path)
    assert (report.rows, report.from_unfinished, report.lost, report.whole) == (21, 21, None, False)
    trace = open_trace(path)
    assert contents(trace).equals(truth)
    assert trace.events.collect().height == 21
    assert trace.lost is None
    assert trace.losses.rows() == [
        (None, 206, 206 + CRASH_NS, None, "crash: the recording was never finished")
    ]
    assert trace.meta.recovered
    assert "recovered" in trace.meta.notes[0]
    assert not (path / "events/00000.arrow.damaged").exists()
    assert sorted(item.name for item in path.iterdir()) == [
        "events",
        "losses.arrow",
        "manifest.jsonl",
        "memslots.arrow",
        "meta.json",
        "samples.arrow",
    ]


def test_killed_before_the_first_event(tmp_path):
    writer = TraceWriter(tmp_path / "x.trace", Meta(start_ns=77))
    shutil.copytree(tmp_path / "x.trace", tmp_path / "copy.trace")
    writer.close()
    report = recover(tmp_path / "copy.trace")
    assert report.rows == 0
    assert [row["reason"] for row in report.missing] == ["crash: the recording was never finished"]
    trace = open_trace(tmp_path / "copy.trace")
    assert trace.losses.rows() == [(None, 77, 77 + CRASH_NS, None, "crash: the recording was never finished")]
    assert trace.events.collect().height == 0


def test_recovering_again_changes_nothing(killed):
    path = killed[0]
    first = recover(path)
    before = {item: item.read_bytes() for item in path.rglob("*") if item.is_file()}
    again = recover(path)
    assert {item: item.read_bytes() for item in path.rglob("*") if item.is_file()} == before
    assert (again.changed, again.rows, again.missing) == (False, first.rows, first.missing)


def test_a_finished_trace_is_left_alone(tmp_path):
    writer, _ = write_frames(tmp_path / "x.trace")
    writer.close()
    before = {item: item.read_bytes() for item in tmp_path.rglob("*") if item.is_file()}
    report = recover(tmp_path / "x.trace")
    assert (report.whole, report.changed, report.rows, report.lost) == (True, False, 21, 0)
    assert {item: item.read_bytes() for item in tmp_path.rglob("*") if item.is_file()} == before


def test_recover_after_a_cut_anywhere_in_the_last_batch(killed, tmp_path, no_sync):
    """Every byte near the batch's ends and every 13th between; every single byte: the next test but one."""
    path, sizes, truth = killed
    content = (path / PART).read_bytes()
    first, last = sizes[-2], sizes[-1]
    for size in sorted({*range(first, first + 24), *range(first, last, 13), *range(last - 24, last + 1)}):
        copy = tmp_path / "cut.trace"
        shutil.copytree(path, copy)
        (copy / PART).write_bytes(content[:size])
        report = recover(copy)
        whole = FRAMES if size == sizes[-1] else FRAMES - 1
        assert report.rows == whole * ROWS, size
        trace = open_trace(copy)
        assert trace.lost is None
        assert contents(trace).equals(truth.slice(0, whole * ROWS)), size
        # On a batch boundary nothing is unexplained; anywhere else the original stays.
        assert (copy / "events/00000.arrow.damaged").exists() == (size not in sizes), size
        shutil.rmtree(copy)


def verified(content):
    reader = FrameReader(pa.py_buffer(content))
    return [frame.batch for frame in reader], reader


def test_cut_at_every_byte_of_the_whole_part(killed):
    path, sizes, truth = killed
    content = (path / PART).read_bytes()
    for size in range(len(content) + 1):
        batches, reader = verified(content[:size])
        whole = sum(size >= end for end in sizes)
        assert len(batches) == whole
        assert sum(batch.num_rows for batch in batches) == whole * ROWS
        if batches:
            assert pa.concat_batches(batches).equals(truth.slice(0, whole * ROWS))
        assert bool(reader.trouble) == (size not in [0, *sizes])


def test_a_flip_of_any_byte_is_found(killed):
    path, sizes, truth = killed
    content = (path / PART).read_bytes()
    rng = random.Random(5)
    for at in range(len(content)):
        flipped = bytearray(content)
        flipped[at] ^= 1 << rng.randrange(8)
        batches, reader = verified(bytes(flipped))
        whole = sum(at >= end for end in sizes)
        assert len(batches) == whole, at
        assert reader.trouble
        if batches:
            assert pa.concat_batches(batches).equals(truth.slice(0, whole * ROWS))


def test_zeroed_blocks_are_not_taken_for_an_end(killed, no_sync):
    path, sizes, truth = killed
    content = (path / PART).read_bytes()
    for start in [*range(0, len(content), 97), *sizes[:-1]]:
        batches, reader = verified(content[:start] + bytes(len(content) - start))
        whole = sum(start >= end for end in sizes)
        assert len(batches) == whole
        assert reader.trouble
        assert not reader.closed
    (path / PART).write_bytes(content + bytes(4096))
    report = recover(path)
    assert report.rows == 21
    assert "torn part 00000" in " ".join(row["reason"] for row in report.missing)
    assert contents(open_trace(path)).equals(truth)


@pytest.mark.parametrize("lost", ["manifest.jsonl", "meta.json", "journal.ndjson"])
def test_a_missing_or_ruined_file_costs_only_itself(killed, lost):
    path, _, truth = killed
    for ruin in (
        lambda file: file.unlink(missing_ok=True),
        lambda file: file.write_bytes(b"\xff\0nonsense\n"),
    ):
        copy = path.with_name("ruined.trace")
        shutil.copytree(path, copy)
        ruin(copy / lost)
        report = recover(copy)
        trace = open_trace(copy)
        assert contents(trace).equals(truth)
        assert trace.lost is None
        if lost == "meta.json":
            assert trace.meta.source == "imported"
            assert "was lost" in trace.meta.notes[0]
            assert report.notes
        shutil.rmtree(copy)


def test_a_loss_report_that_only_the_frames_know_of_is_not_forgotten(tmp_path):
    path = tmp_path / "x.trace"
    writer = TraceWriter(path, Meta())
    writer.add_loss(0, 0, 5, 11, "ring full")
    writer.append(rows(0))
    writer.flush(everything=True)
    copy = tmp_path / "copy.trace"
    shutil.copytree(path, copy)
    writer.abort()
    (copy / "journal.ndjson").unlink()
    recover(copy)
    assert (None, 0, 6, 11, "loss report lost in the crash") in open_trace(copy).losses.rows()


def test_side_tables_and_marks_survive(tmp_path):
    path = tmp_path / "x.trace"
    writer = TraceWriter(path, Meta(marks=[{"name": "start", "ts_ns": 0}]))
    writer.add_memslot(vm=0, slot=0, gpa=0, size_bytes=4096, hva=1, from_ns=0, known_by="ioctl")
    writer.add_sample(3, 0, "rss_bytes", 5.5)
    writer.mark("boot", 4)
    writer.append(rows(0))
    writer.flush(everything=True)
    copy = tmp_path / "copy.trace"
    shutil.copytree(path, copy)
    writer.abort()
    with (copy / "journal.ndjson").open("ab") as journal:
        journal.write(b'01234567 ["sample", {"ts_ns": 9')
    recover(copy)
    trace = open_trace(copy)
    assert trace.samples.rows() == [(3, 0, "rss_bytes", 5.5)]
    assert trace.memslots["size_bytes"].to_list() == [4096]
    assert [mark["name"] for mark in trace.meta.marks] == ["start", "boot"]


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "footer"])
def test_a_finished_part_that_was_damaged_later(tmp_path, damage):
    path = tmp_path / "x.trace"
    writer, sizes = write_frames(path)
    writer.close()
    part = path / "events/00000.arrow"
    content = bytearray(part.read_bytes())
    if damage == "flip":
        content[sizes[1] + 40] ^= 4
    elif damage == "truncate":
        content = content[: sizes[0]]
    elif damage == "footer":
        content[-20] ^= 255
    if damage == "remove":
        part.unlink()
    else:
        part.write_bytes(content)
    with pytest.raises(DamagedError) as refused:
        open_trace(path).events  # noqa: B018
    assert "recover" in refused.value.hint
    kept = {"flip": 14, "truncate": 7, "remove": 0, "footer": 21}[damage]
    report = recover(path)
    trace = open_trace(path)
    assert (report.rows, trace.rows, report.lost) == (
        kept,
        kept,
        21 - kept,
    )  # known exactly: the manifest told it
    assert report.whole == (damage == "footer")
    assert trace.events.collect().height == kept
    assert trace.lost == 21 - kept
    assert (path / "events/00000.arrow.damaged").exists() == (damage != "remove")
    assert recover(path).changed is False


def test_a_damaged_ledger_never_reads_as_nothing_lost(tmp_path):
    path = tmp_path / "x.trace"
    writer, _ = write_frames(path)
    writer.add_loss(0, 1, 2, 5, "ring full")
    writer.close()
    content = bytearray((path / "losses.arrow").read_bytes())
    content[len(content) // 2] ^= 1
    (path / "losses.arrow").write_bytes(content)
    with pytest.raises(DamagedError, match="checksum"):
        _ = open_trace(path).lost
    recover(path)
    assert open_trace(path).lost is None


def test_a_recovery_that_is_itself_interrupted_can_be_repeated(killed, tmp_path, monkeypatch):
    path, _, truth = killed
    with (path / PART).open("ab") as part:
        part.write(b"unexplained")
    calls = 0
    for stop_at in range(1, 60):
        copy = tmp_path / "again.trace"
        shutil.copytree(path, copy)
        calls = 0
        with monkeypatch.context() as patch:
            for name in ("rename", "unlink"):
                real = getattr(os, name)

                def interrupted(*args, _real=real, _stop_at=stop_at, **kwargs):
                    nonlocal calls
                    calls += 1
                    if calls == _stop_at:
                        raise KeyboardInterrupt
                    return _real(*args, **kwargs)

                patch.setattr(os, name, interrupted)
            try:
                recover(copy)
            except KeyboardInterrupt:
                finished = False
            else:
                finished = True
        report = recover(copy)
        trace = open_trace(copy)
        assert contents(trace).equals(truth), stop_at
        assert trace.lost is None, stop_at
        assert not report.whole
        assert (copy / "events/00000.arrow.damaged").read_bytes().endswith(b"unexplained"), stop_at
        shutil.rmtree(copy)
        if finished:
            assert stop_at > 5
            return
    pytest.fail("the recovery never ran to its end")


def test_a_trace_that_is_being_recorded_is_not_touched(tmp_path):
    writer, _ = write_frames(tmp_path / "x.trace")
    for action in (recover, open_trace):
        with pytest.raises((UsageError, DamagedError), match="still being recorded"):
            action(tmp_path / "x.trace")
    writer.close()
    assert open_trace(tmp_path / "x.trace").rows == 21


def _write_then_fail(path):
    with TraceWriter(path, Meta()) as writer:
        writer.append(rows(0))
        _ = 1 / 0


def test_an_exception_in_the_block_leaves_a_recoverable_trace_without_unknown_losses(tmp_path):
    path = tmp_path / "x.trace"
    with pytest.raises(ZeroDivisionError):
        _write_then_fail(path)
    report = recover(path)
    assert (report.rows, report.lost) == (7, 0)
    assert "ZeroDivisionError" in open_trace(path).meta.notes[-1]


def test_an_interrupt_in_the_middle_of_writing_is_an_unknown_loss_never_none(tmp_path, monkeypatch):
    path, real = tmp_path / "x.trace", PartWriter.write

    def interrupted(part, batch, lost):
        real(part, batch.slice(0, 3), lost)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(PartWriter, "write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_frames(path)
    report = recover(path)
    assert (report.rows, report.lost, report.whole) == (3, None, False)


def test_not_a_trace_at_all(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "text").write_text("mine")
    for path in (tmp_path / "nothing", tmp_path / "thesis", tmp_path / "thesis" / "text"):
        with pytest.raises(UsageError):
            recover(path)
    assert [item.name for item in (tmp_path / "thesis").iterdir()] == ["text"]


def test_a_newer_schema_is_not_touched(killed):
    path = killed[0]
    meta = json.loads((path / "meta.json").read_text())
    (path / "meta.json").write_text(json.dumps({**meta, "schema_version": 99}))
    before = sorted(path.rglob("*"))
    with pytest.raises(UsageError, match="newer tracekit"):
        recover(path)
    assert sorted(path.rglob("*")) == before


WRITER = """
import sys, numpy as np
from tracekit.trace import Meta, TraceWriter, events_batch
writer = TraceWriter(sys.argv[1], Meta(source="synthetic"), max_part_bytes=200_000)
start, acknowledged = 0, 0
while True:
    ts = np.arange(start, start + 5000) * 1000
    writer.append(events_batch(ts_ns=ts, kind="ept_violation", gfn=ts * 7 % 1_000_003, latency_ns=ts % 977))
    start += 5000
    writer.add_sample(int(ts[-1]), 0, "rss_bytes", float(start))
    if start % 20_000 == 0:
        print(writer.flush(), flush=True)
"""


def test_sigkill_of_a_real_writer_loses_no_acknowledged_row(tmp_path):
    rng = random.Random(11)
    for attempt in range(5):
        path = tmp_path / f"{attempt}.trace"
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        for _ in range(rng.randrange(1, 60)):
            acknowledged = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        later = process.stdout.read().split()
        process.wait()
        process.stdout.close()
        acknowledged = int(later[-1]) if later and len(later[-1]) >= len(str(acknowledged)) else acknowledged
        report = recover(path)
        trace = open_trace(path)
        assert trace.rows == report.rows >= acknowledged > 0
        table = pa.Table.from_batches(trace.batches())
        ts = np.arange(trace.rows) * 1000
        assert np.array_equal(table["ts_ns"].to_numpy(), ts)
        assert np.array_equal(table["gfn"].to_numpy(), ts * 7 % 1_000_003)
        assert np.array_equal(table["latency_ns"].to_numpy(), ts % 977)
        assert trace.lost is None


FILLS_THE_DISK = """
import sys, resource, numpy as np
from tracekit.trace import Meta, TraceWriter, events_batch
from tracekit.errors import FailedError
if len(sys.argv) > 2:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
random, start = np.random.default_rng(0), 0
try:
    with TraceWriter(sys.argv[1], Meta(source="synthetic")) as writer:
        while start < 10_000_000:
            ts = np.arange(start, start + 20_000) * 1000
            writer.append(events_batch(ts_ns=ts, kind="access", gfn=random.integers(0, 2**50, 20_000)))
            start += 20_000
except FailedError as error:
    print(start + 20_000, error.message, "|", error.hint)
"""


def fill(path, *arguments):
    ran = subprocess.run(
        [sys.executable, "-c", FILLS_THE_DISK, str(path), *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    emitted, message = ran.stdout.split(" ", 1)
    return int(emitted), message


@pytest.mark.skipif(os.getuid() != 0, reason="only root can mount a small disk to fill")
def test_a_full_disk_keeps_what_fits_and_counts_the_rest_exactly(tmp_path):
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3M", "none", str(tmp_path)], check=True)
    try:
        path = tmp_path / "x.trace"
        emitted, message = fill(path)
        assert "the disk is full" in message
        assert "events are safe" in message
        assert f"tracekit recover {path}" in message
        moved = shutil.copytree(path, f"{tmp_path}-moved.trace")
        try:
            report = recover(moved)
            trace = open_trace(moved)
            assert report.rows > 100_000
            assert report.rows + trace.lost == emitted
            assert np.array_equal(contents(trace).column("ts_ns").to_numpy(), np.arange(trace.rows) * 1000)
        finally:
            shutil.rmtree(moved)
        with pytest.raises(DamagedError, match="nothing was removed"):
            recover(path)  # there is no room for it here
        assert (path / PART).exists()
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_file_that_may_not_grow_leaves_a_recoverable_trace(tmp_path):
    emitted, message = fill(tmp_path / "x.trace", str(1 << 20))
    assert "File too large" in message
    report = recover(tmp_path / "x.trace")
    trace = open_trace(tmp_path / "x.trace")
    assert 0 < report.rows < emitted
    assert np.array_equal(contents(trace).column("ts_ns").to_numpy(), np.arange(trace.rows) * 1000)


def test_a_folder_that_is_removed_while_recording(tmp_path):
    writer, _ = write_frames(tmp_path / "x.trace")
    shutil.rmtree(tmp_path / "x.trace")
    writer.append(rows(1000))
    with pytest.raises(FailedError, match="removed"):
        writer.flush()
    assert list(Path(tmp_path).iterdir()) == []
