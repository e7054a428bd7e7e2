"""Damage in the middle of a part costs the batches it is in: those behind it prove themselves."""

import random
from itertools import pairwise

import pyarrow as pa
import pytest

from tests.unit.torn_traces import FRAMES, PART, ROWS, contents, rows, write_frames
from tracekit.trace import Meta, TraceWriter, open_trace, recover
from tracekit.trace.framing import frame_metadata
from tracekit.trace.resync import SalvageReader


def salvaged(content):
    reader = SalvageReader(pa.py_buffer(content))
    return [frame.seq for frame in reader], reader


def frame_of(at, sizes):
    return sum(at >= end for end in sizes)


def test_a_flip_of_any_byte_costs_its_own_batch_and_says_how_many_rows_that_is(killed):
    path, sizes, _ = killed
    content = (path / PART).read_bytes()
    rng = random.Random(6)
    for at in range(len(content)):
        flipped = bytearray(content)
        flipped[at] ^= 1 << rng.randrange(8)
        hit = frame_of(at, sizes)
        found, reader = salvaged(bytes(flipped))
        # What the first frame has before its batch (columns, kinds) is not needed to read the others.
        assert found == [seq for seq in range(FRAMES) if seq != hit], at
        (gap,) = reader.gaps
        # Nothing follows the last one: how much it was, nobody tells.
        assert gap.rows == (None if hit == FRAMES - 1 else ROWS), at
        assert gap.before_ns == (None if hit == 0 else (hit - 1) * 100 + ROWS - 1)
        assert gap.after_ns == (None if hit == FRAMES - 1 else (hit + 1) * 100)


def test_bytes_taken_out_or_put_in_anywhere_cost_no_other_batch(killed):
    path, sizes, _ = killed
    content = (path / PART).read_bytes()
    rng = random.Random(7)
    for _ in range(300):
        at = rng.randrange(8, sizes[-1] - 1)
        count = rng.randrange(1, 40)
        hit = {frame_of(at, sizes), frame_of(min(at + count, sizes[-1] - 1), sizes)}
        found, reader = salvaged(content[:at] + content[at + count :])
        assert found == [seq for seq in range(FRAMES) if seq not in hit], (at, count)
        assert reader.gaps
        junk = rng.randbytes(count)
        found, reader = salvaged(content[:at] + junk + content[at:])
        whole = at in sizes  # between two batches: junk, and every batch is there
        assert found == [seq for seq in range(FRAMES) if whole or seq != frame_of(at, sizes)], (at, count)
        assert reader.gaps


def test_recover_ledgers_each_hole_by_itself(tmp_path):
    """An unfinished part with two holes and a torn end: two exact losses, and one unknown."""
    writer, sizes = write_frames(tmp_path / "x.trace", frames=6)
    content = bytearray((tmp_path / "x.trace" / PART).read_bytes())
    writer.abort()
    for frame in (1, 3):
        content[sizes[frame] - 70] ^= 8
    (tmp_path / "x.trace" / PART).write_bytes(content[:-9])
    report = recover(tmp_path / "x.trace")
    trace = open_trace(tmp_path / "x.trace")
    assert trace.rows == report.rows == 3 * ROWS
    kept = pa.concat_batches([rows(frame * 100) for frame in (0, 2, 4)])
    assert contents(trace).equals(kept)
    assert [row[1:4] for row in trace.losses.rows()] == [
        (6, 200, ROWS),
        (206, 400, ROWS),
        (406, 406 + 10**9, None),
    ]
    assert all(reason.startswith("torn part 00000: byte") for reason in trace.losses["reason"])
    assert (tmp_path / "x.trace/events/00000.arrow.damaged").read_bytes() == content[:-9]
    assert recover(tmp_path / "x.trace").changed is False


@pytest.mark.parametrize("noted", [True, False])
def test_a_finished_part_with_holes_is_counted_to_the_row(tmp_path, monkeypatch, noted):
    """`noted` False: a part by 0.1.0, whose batches did not yet say how many rows came before them."""
    if not noted:
        names = ("seq", "rows", "lost_so_far", "crc32")
        monkeypatch.setattr(
            "tracekit.trace.part.frame_metadata",
            lambda *args: {name: frame_metadata(*args)[name] for name in names},
        )
    path = tmp_path / "x.trace"
    writer, sizes = write_frames(path, frames=5)
    writer.close()
    part = path / "events/00000.arrow"
    content = bytearray(part.read_bytes())
    for frame in (0, 2, 4):
        content[sizes[frame] - 70] ^= 8
    part.write_bytes(content)
    report = recover(path)
    assert (report.rows, report.lost) == (2 * ROWS, 3 * ROWS)
    bounds = [row[1:4] for row in open_trace(path).losses.rows()]
    if noted:
        assert bounds == [(0, 100, ROWS), (106, 300, ROWS), (306, 406, ROWS)]
    else:
        assert bounds == [(0, 406, 3 * ROWS)]
    assert recover(path).changed is False


def test_a_frame_from_elsewhere_is_not_taken_for_one_of_this_part(tmp_path):
    """A block of an older time, or this part's own bytes twice: the checksum is right, the place is not."""
    writer, sizes = write_frames(tmp_path / "x.trace", frames=4)
    content = (tmp_path / "x.trace" / PART).read_bytes()
    writer.abort()
    frames = [content[start:end] for start, end in pairwise([0, *sizes])]
    found, reader = salvaged(frames[0] + frames[1] + b"junk" + frames[1] + frames[3])
    assert found == [0, 1, 3]
    (gap,) = reader.gaps
    assert gap.rows == ROWS
    found, _ = salvaged(frames[0] + frames[2] + frames[1] + frames[3])
    assert found == [0, 2, 3]


def test_what_only_looks_like_frames_ends(tmp_path, monkeypatch):
    """Marks without end, each with a header that claims a batch: the search gives up, honestly."""
    monkeypatch.setattr("tracekit.trace.resync._MOST_LIES", 20)
    writer, sizes = write_frames(tmp_path / "x.trace")
    content = (tmp_path / "x.trace" / PART).read_bytes()
    writer.abort()
    lie = bytearray(content[sizes[0] : sizes[1]])
    lie[-70] ^= 1
    found, reader = salvaged(content[: sizes[0]] + bytes(lie) * 30 + content[sizes[0] :])
    assert found == [0]
    assert sum(gap.size for gap in reader.gaps) == len(lie) * 30 + len(content) - sizes[0]


def test_an_empty_trace_has_nothing_to_resynchronise(tmp_path):
    with TraceWriter(tmp_path / "x.trace", Meta()):
        pass
    found, reader = salvaged((tmp_path / "x.trace/events/00000.arrow").read_bytes())
    assert (found, reader.gaps, reader.closed) == ([], [], True)
