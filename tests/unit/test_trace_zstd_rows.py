"""zstd frames that were written down instead of searched for: every decoder finds the column again."""

import subprocess
from shutil import which

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.unit.torn_traces import contents
from tracekit.trace import Meta, TraceWriter, events_batch, open_trace
from tracekit.trace.framing import FrameReader
from tracekit.trace.zstd_rows import compress_repeated, compress_rows, is_constant

ZSTD = pa.Codec("zstd")


def compress_constant(values):
    """As a part does it for a column."""
    return compress_repeated(values[:1].tobytes(), len(values)) if is_constant(values) else None


def column(rows, changed, low, base, jumps, seed):
    """Numbers that change in `changed` bytes from byte `low` on, with some rows far from the others."""
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 1 << 8 * changed, rows, np.uint64) << np.uint64(8 * low)
    values += np.uint64(base)
    for at in rng.integers(0, max(rows, 1), jumps if rows else 0):
        values[at:] += np.uint64(1) << np.uint64(rng.integers(0, 40))
    return values


@settings(max_examples=400, deadline=None)
@given(
    rows=st.one_of(st.integers(0, 400), st.integers(16_000, 50_000)),
    changed=st.integers(0, 5),
    low=st.integers(0, 3),
    base=st.integers(0, 2**62),
    jumps=st.integers(0, 4),
    seed=st.integers(0, 99),
)
@example(rows=65_536, changed=3, low=5, base=0, jumps=0, seed=0)  # the highest byte changes
@example(rows=64, changed=0, low=0, base=7, jumps=0, seed=0)  # nothing does
@example(rows=65_536, changed=2, low=0, base=2**40, jumps=4, seed=0)
def test_a_frame_holds_the_column(rows, changed, low, base, jumps, seed):
    values = column(rows, changed, low, base, jumps, seed)
    frame = compress_rows(values)
    if frame is None:
        assert rows < 64 or changed > 3 or jumps or base + (1 << 8 * (changed + low)) > 1 << 8 * (low + 3)
        return
    assert ZSTD.decompress(frame, values.nbytes).to_pybytes() == values.tobytes()
    assert len(frame) < 3 * rows + 24 * (rows // 1024 + rows // 16_384 + 6) + 8 * 256


def test_what_changes_as_time_does_is_taken():
    """Times 3 us apart pass a multiple of 2**24 every 5,000 rows: those rows have blocks of their own."""
    times = np.cumsum(np.random.default_rng(1).integers(2000, 4000, 65_536, np.uint64))
    frame = compress_rows(times)
    assert frame is not None
    assert 3 * len(times) < len(frame) < 3.01 * len(times)


@settings(max_examples=200, deadline=None)
@given(
    rows=st.integers(2048, 70_000),
    step=st.sampled_from([1, 2, 512, 4096, 8192, 1 << 21]),
    base=st.integers(0, 2**44),
    jumps=st.lists(st.tuples(st.integers(0, 70_000), st.integers(1, 1 << 30)), max_size=3),
    most=st.integers(1, 3),
)
@example(rows=65_536, step=4096, base=0, jumps=[], most=1)
@example(rows=65_536, step=1, base=512, jumps=[(65_534, 256)], most=1)  # the last rows differ in more
@example(rows=4096, step=4096, base=0xFF00 << 12, jumps=[(17, 1 << 24)], most=3)
def test_pages_in_order_are_compared_with_rows_farther_back(rows, step, base, jumps, most):
    values = np.uint64(base) + np.arange(rows, dtype=np.uint64) * np.uint64(step)
    for at, by in jumps:
        values[at:] += np.uint64(by)
    frame = compress_rows(values, most)
    if frame is not None:
        assert ZSTD.decompress(frame, values.nbytes).to_pybytes() == values.tobytes()


@pytest.mark.parametrize("step", [1, 4096])
def test_pages_in_order_take_a_byte_a_row(step):
    frame = compress_rows(np.arange(512, 66_048, dtype=np.uint64) * np.uint64(step), 1)
    assert frame is not None
    assert len(frame) < 1.1 * 65_536


@settings(max_examples=200, deadline=None)
@given(
    dtype=st.sampled_from([np.uint8, np.uint16, np.uint32, np.uint64]),
    rows=st.one_of(st.integers(1, 300), st.integers(1, 300_000)),
    value=st.integers(0, 255),
    other=st.one_of(st.none(), st.integers(0, 299_999)),
)
@example(dtype=np.uint8, rows=131_073, value=1, other=None)  # one byte, and the largest block
@example(dtype=np.uint8, rows=131_074, value=1, other=None)
@example(dtype=np.uint64, rows=65_536, value=255, other=None)
def test_a_column_of_one_value_is_one_long_match(dtype, rows, value, other):
    values = np.full(rows, value * (np.iinfo(dtype).max // 255), dtype)
    if other is not None and other < rows:
        values[other] ^= 1
    frame = compress_constant(values)
    if frame is None:
        assert values.nbytes < 131 + values.itemsize or (other is not None and other < rows)
        return
    assert len(frame) < 80 + 16 * (values.nbytes >> 17)
    assert ZSTD.decompress(frame, values.nbytes).to_pybytes() == values.tobytes()


@pytest.mark.skipif(which("zstd") is None, reason="the zstd program is not installed")
@pytest.mark.parametrize("make", [compress_rows, compress_constant])
def test_the_zstd_program_reads_a_frame(make):
    values = column(40_000, 2 if make is compress_rows else 0, 1, 2**40, 2 if make is compress_rows else 0, 3)
    frame = make(values)
    assert frame is not None
    assert (
        subprocess.run(["zstd", "-dc"], input=frame, capture_output=True, check=True).stdout
        == values.tobytes()
    )


def events(rows, *, nulls=False, seed=0):
    rng = np.random.default_rng(seed)
    latency = rng.integers(900, 4000, rows, np.uint64)
    return events_batch(
        ts_ns=np.cumsum(latency) + np.uint64(10**12),
        kind="ept_violation",
        gfn=512 + np.arange(rows),
        gva=rng.integers(0, 1 << 40, rows, np.uint64),
        latency_ns=latency,
        valid={"latency_ns": rng.random(rows) < 0.9} if nulls else None,
    )


@pytest.mark.parametrize("nulls", [False, True])
@pytest.mark.parametrize("rows", [4, 66, 67, 9000, 150_004])
def test_a_trace_with_such_columns_reads_as_any_other(tmp_path, rows, nulls):
    batch = events(rows, nulls=nulls).slice(3)  # bits of validity then begin inside a byte
    rows = batch.num_rows
    with TraceWriter(tmp_path / "x.trace", Meta()) as writer:
        writer.append(batch)
    trace = open_trace(tmp_path / "x.trace")
    assert contents(trace).equals(batch)
    assert pl.DataFrame(pa.Table.from_batches([batch])).equals(trace.events.collect())
    part = pa.memory_map(str(tmp_path / "x.trace/events/00000.arrow"))
    assert pa.concat_batches(pa.ipc.open_file(part).read_all().to_batches()).equals(batch)
    reader = FrameReader(part.read_buffer())
    assert sum(frame.batch.num_rows for frame in reader) == rows
    assert reader.closed  # the footer names the batches where they are
