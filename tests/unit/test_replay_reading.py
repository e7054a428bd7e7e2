"""From the files to the columns: read ahead in another thread, small frames joined, the same figures."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from tracekit.errors import DamagedError
from tracekit.replay import run, timeline
from tracekit.trace import Meta, Trace, TraceWriter, events_batch, open_trace

ROWS = 40_009
SCENARIOS = ["prealloc", "hugepages+swap,limit_mib=30"]


def readers() -> list[str]:
    return [one.name for one in threading.enumerate() if one.name.startswith("tracekit-ahead")]


@pytest.fixture
def trace(tmp_path: Path) -> Trace:
    """Faults and discards of three vCPUs, in frames of 1,000 rows."""
    rng = np.random.default_rng(3)
    ts = 10**9 + np.cumsum(rng.integers(1, 4_000, ROWS))
    kind = np.where(rng.random(ROWS) < 0.9, "ept_violation", "balloon_inflate")
    fault = kind == "ept_violation"
    with TraceWriter(tmp_path / "x.trace", Meta(vms=[{"pid": 1}])) as writer:
        writer.add_memslot(vm=0, slot=0, gpa=0, size_bytes=1 << 26, hva=1 << 40, from_ns=0, known_by="ioctl")
        for part in np.array_split(np.arange(ROWS), 41):
            writer.append(
                events_batch(
                    ts_ns=ts[part],
                    kind=kind[part].tolist(),
                    gfn=rng.integers(0, 1 << 14, len(part)),
                    vcpu=rng.integers(0, 3, len(part)),
                    level=1,
                    access=2,
                    latency_ns=rng.integers(500, 9_000, len(part)),
                    valid={"level": fault[part], "vcpu": fault[part]},
                )
            )
            writer.flush()
    return open_trace(tmp_path / "x.trace")


def test_another_thread_changes_no_figure(trace: Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(trace, SCENARIOS)
    assert readers() == []
    # Read anew in each pass, in a thread, and into batches that no frame fits.
    monkeypatch.setattr(timeline, "READ_ALONE", 0)
    monkeypatch.setattr(timeline, "BATCH_ROWS", 7_001)
    keep = timeline.Timeline.__init__.__kwdefaults__ | {"keep_rows": 0}
    monkeypatch.setattr(timeline.Timeline.__init__, "__kwdefaults__", keep)
    assert run(trace, SCENARIOS).rows.equals(whole.rows)
    assert readers() == []


def test_damage_that_the_thread_meets_is_the_error_of_who_reads(
    trace: Trace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timeline, "READ_ALONE", 0)
    part = trace.path / "events" / trace.parts[0].part
    content = bytearray(part.read_bytes())
    content[len(content) * 2 // 3] ^= 0xFF
    part.write_bytes(content)
    with pytest.raises(DamagedError, match="damaged"):
        run(trace, SCENARIOS)
    assert readers() == []
