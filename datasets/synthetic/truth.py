"""What a generator knows about the events that it makes: the answer that any analysis must find again."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tracekit.trace.schema import KINDS

__all__ = ["GapCounter", "Truth"]

MAX_CURVE_POINTS = 512


class Truth:
    """Collects a synthetic trace's known truth while its blocks are made; `to_json()` goes to meta.truth.

    Row counts and latency sums per kind are tallied here for every generator; what a generator knows by
    construction it puts into `facts`, points of the resident curve into `resident()`, the names
    of its phases into `phase()`.

    >>> truth = Truth()
    >>> truth.resident(1_000, 5); truth.facts["first_touches"] = 5
    >>> truth.to_json()["resident_curve"], truth.to_json()["first_touches"]
    ([[1000, 5]], 5)
    """

    def __init__(self) -> None:
        self.facts: dict[str, Any] = {}
        self.phases: list[tuple[str, int]] = []
        self._rows = np.zeros(len(KINDS), np.int64)
        self._latency = np.zeros(len(KINDS), np.float64)
        self._curve: list[tuple[int, int]] = []
        self._keep_every = 1
        self._curve_calls = 0
        self._last: tuple[int, int] | None = None

    def tally(self, kind: npt.NDArray[np.uint8], latency_ns: npt.NDArray[Any] | None) -> None:
        """Count a block's rows, and sum its latencies (ns), by kind."""
        self._rows += np.bincount(kind, minlength=len(KINDS))
        if latency_ns is not None:
            self._latency += np.bincount(kind, weights=latency_ns, minlength=len(KINDS))

    def resident(self, ts_ns: int, pages: int) -> None:
        """Add a point: `pages` 4 KiB pages are backed by the host after every event up to `ts_ns`."""
        self._last = (int(ts_ns), int(pages))
        if self._curve_calls % self._keep_every == 0:
            self._curve.append(self._last)
        self._curve_calls += 1
        if len(self._curve) > MAX_CURVE_POINTS:
            # A trace of any length keeps a curve of bounded length: every second point goes.
            self._curve = self._curve[::2]
            self._keep_every *= 2

    def phase(self, name: str, ts_ns: int) -> None:
        """Say that a phase of the workload begins at `ts_ns`; it becomes a mark of the trace."""
        self.phases.append((name, int(ts_ns)))

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; latencies are whole nanoseconds (exact below 2**53)."""
        seen = np.flatnonzero(self._rows)
        out: dict[str, Any] = {
            "rows": {KINDS[k]: int(self._rows[k]) for k in seen},
            "latency_ns": {KINDS[k]: int(self._latency[k]) for k in seen if self._latency[k]},
            **self.facts,
        }
        if self._last is not None:
            curve = self._curve if self._curve[-1] == self._last else [*self._curve, self._last]
            out["resident_curve"] = [list(point) for point in curve]
        return out


class GapCounter:
    """Counts gaps of time between two kinds of event on one page, in powers of two of nanoseconds.

    >>> import numpy as np
    >>> gaps = GapCounter(pages=4)
    >>> gaps.begin(np.array([1, 2]), np.array([100, 100]))
    >>> gaps.end(np.array([1, 3]), np.array([108, 200]))   # page 3 never began: no gap
    >>> gaps.to_json()
    {'count': 1, 'sum_ns': 8, 'log2_ns': {'3': 1}, 'open': 1}
    """

    def __init__(self, pages: int) -> None:
        self._since = np.full(pages, -1, np.int64)
        self._log2 = np.zeros(64, np.int64)
        self._sum = 0

    def begin(self, page: npt.NDArray[Any], ts_ns: npt.NDArray[Any]) -> None:
        """Open a gap on each page."""
        self._since[page] = ts_ns

    def end(self, page: npt.NDArray[Any], ts_ns: npt.NDArray[Any]) -> None:
        """Close the gap on each page that has one open."""
        since = self._since[page]
        gap = (ts_ns.astype(np.int64) - since)[since >= 0]
        self._since[page] = -1
        self._sum += int(gap.sum())
        # frexp is exact where a log2 in floating point would round a gap just below a power of two up.
        self._log2 += np.bincount(np.frexp(gap.clip(min=1).astype(np.float64))[1] - 1, minlength=64)

    def to_json(self) -> dict[str, Any]:
        """Return how many gaps closed, their sum, a histogram by floor(log2(gap)), and how many are open."""
        return {
            "count": int(self._log2.sum()),
            "sum_ns": self._sum,
            "log2_ns": {str(b): int(self._log2[b]) for b in np.flatnonzero(self._log2)},
            "open": int((self._since >= 0).sum()),
        }
