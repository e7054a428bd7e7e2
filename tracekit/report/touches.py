"""Tells a page's first touch from its later ones: the one thing here that needs a state per page."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from tracekit.replay.jit import compiled
from tracekit.trace.ahead import ahead
from tracekit.trace.schema import FLAG_PRESENT, KIND_CODE

if TYPE_CHECKING:
    from tracekit.trace import Trace

__all__ = ["Grid", "count_touches"]

COLUMNS: Final = ["ts_ns", "kind", "vm", "gfn", "pages", "flags"]

Ints = np.ndarray[Any, np.dtype[np.int64]]


class Grid(NamedTuple):
    """Cells of gfn x time: where they start, how large and how many they are, and the pages of one VM."""

    start_ns: int
    step_ns: int
    time_bins: int
    first_gfn: int
    step_gfn: int
    gfn_bins: int
    pages: int


def count_touches(trace: Trace, kind: str, grid: Grid, vms: int) -> tuple[Ints, Ints]:
    """Return pages per cell (gfn_bin * time_bins + time_bin) of first and of all faults of a kind.

    Counted are faults that found no entry, each with its `pages`. One byte of state per page of each VM,
    whatever the length of the trace.
    """
    seen = np.zeros(vms * grid.pages, np.bool_)
    first, every = np.zeros((2, grid.gfn_bins * grid.time_bins), np.int64)
    for batch in ahead(trace.batches(COLUMNS)):
        ts, kinds, vm, gfn, pages, flags = (batch.column(name) for name in COLUMNS)
        _kernel()(
            ts.to_numpy().view(np.int64),
            kinds.indices.to_numpy(zero_copy_only=False),
            vm.to_numpy(),
            gfn.fill_null(0).to_numpy(zero_copy_only=False).view(np.int64),
            gfn.is_valid().to_numpy(zero_copy_only=False),
            pages.to_numpy(),
            flags.to_numpy(),
            KIND_CODE[kind],
            grid,
            seen,
            first,
            every,
        )
    return first, every


@cache
def _kernel() -> Any:
    return compiled(_count)


def _count(  # noqa: PLR0917  a compiled loop takes its columns one by one
    ts: Any,
    kinds: Any,
    vm: Any,
    gfn: Any,
    known: Any,
    pages: Any,
    flags: Any,
    code: int,
    grid: Grid,
    seen: Any,
    first: Any,
    every: Any,
) -> None:
    for i in range(len(ts)):
        if kinds[i] != code or not known[i] or flags[i] & FLAG_PRESENT:
            continue
        page = gfn[i] - grid.first_gfn
        if not 0 <= page < grid.pages:  # beyond what x86-64 can address: a damaged or hostile row
            continue
        cell = page // grid.step_gfn * grid.time_bins + (ts[i] - grid.start_ns) // grid.step_ns
        every[cell] += pages[i]
        at = vm[i] * grid.pages + page
        if not seen[at]:
            seen[at] = True
            first[cell] += pages[i]
