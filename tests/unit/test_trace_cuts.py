"""Parts that were cut, flipped or zeroed anywhere: every whole frame is kept, and nothing else is."""

import random
import shutil

import pyarrow as pa
import pytest

from tests.unit.torn_traces import FRAMES, PART, ROWS, contents, write_frames
from tracekit.errors import DamagedError
from tracekit.trace import open_trace, recover
from tracekit.trace.framing import FrameReader


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
        zeroed = content[:start] + bytes(len(content) - start)
        batches, reader = verified(zeroed)
        whole = sum(zeroed[:end] == content[:end] for end in sizes)  # a batch may end in zeros anyway
        assert len(batches) == whole
        assert reader.trouble
        assert not reader.closed
    (path / PART).write_bytes(content + bytes(4096))
    report = recover(path)
    assert report.rows == 21
    assert "torn part 00000" in " ".join(row["reason"] for row in report.missing)
    assert contents(open_trace(path)).equals(truth)


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
