"""Whatever a crash leaves: every whole batch comes back, never a wrong row, and the ledger tells the rest."""

import json
import os
import shutil
import time

import pytest

from tests.unit.torn_traces import PART, contents, rows, write_frames
from tracekit.errors import DamagedError, UsageError
from tracekit.trace import Meta, TraceWriter, events_batch, open_trace, recover
from tracekit.trace.part import PartWriter
from tracekit.trace.recovery import CRASH_NS


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

    def interrupted(part, batches, lost):
        real(part, [batches[0].slice(0, 3)], lost)
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


def test_what_a_live_recording_had_not_yet_read_when_it_was_aborted_is_an_unknown_loss(tmp_path):
    before = time.monotonic_ns()
    writer = TraceWriter(tmp_path / "x.trace", Meta(start_ns=before), live=True)
    last = time.monotonic_ns()
    writer.append(events_batch(ts_ns=[last], kind="madvise"))
    writer.abort("stopped by KeyboardInterrupt")
    report = recover(tmp_path / "x.trace")
    trace = open_trace(tmp_path / "x.trace")
    assert trace.rows == 1
    assert trace.lost is None
    assert not report.whole
    (loss,) = trace.losses.to_dicts()
    assert loss["reason"] == "not written: stopped by KeyboardInterrupt"
    assert before <= loss["t0_ns"] <= last <= loss["t1_ns"] <= time.monotonic_ns()
