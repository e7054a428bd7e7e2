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
from tracekit.trace.splice import take_out
from tracekit.trace.zstd_rows import compress_rows

ZSTD = pa.Codec("zstd")


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
    assert len(frame) < 3 * rows + 24 * (rows // 4096 + rows // 16_384 + 6)


def test_what_changes_as_time_does_is_taken():
    """Times 3 us apart pass a multiple of 2**24 every 5,000 rows: those rows have blocks of their own."""
    times = np.cumsum(np.random.default_rng(1).integers(2000, 4000, 65_536, np.uint64))
    frame = compress_rows(times)
    assert frame is not None
    assert 3 * len(times) < len(frame) < 3.01 * len(times)


@pytest.mark.skipif(which("zstd") is None, reason="the zstd program is not installed")
def test_the_zstd_program_reads_a_frame():
    values = column(40_000, 2, 1, 2**40, 2, 3)
    frame = compress_rows(values)
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
@pytest.mark.parametrize("rows", [1, 63, 64, 9000, 150_001])
def test_a_trace_with_such_columns_reads_as_any_other(tmp_path, rows, nulls):
    batch = events(rows, nulls=nulls)
    columns = take_out(batch.slice(0, 65_536))[1]
    assert len(columns) == (0 if rows < 64 else 2 if nulls else 3)
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
