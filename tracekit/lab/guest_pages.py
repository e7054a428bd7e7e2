"""What a Linux guest's kernel says of its pages (its own ftrace), as the guest side of a trace: which were
free as it began to tell, early in its boot, and each one given out or taken back from then on.

What `tracekit record --guest` sees, for a guest that has no Python and no BPF compiler. A page was free at
the start if the first that is told of it is that it was given out, or if nothing is and /proc/kpageflags
calls it buddy. Times are of the processor's counter, which early in a boot is the only even clock; marks
whose times the host knows turn them into the host's.
"""

from __future__ import annotations

import base64
import gzip
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl

from tracekit.errors import FailedError
from tracekit.lab.qemu import Qemu
from tracekit.trace import Meta, Trace, TraceWriter, open_trace
from tracekit.trace.batch import events_batch
from tracekit.trace.schema import FLAG_ATTACH, FLAG_ZEROED

__all__ = ["KERNEL_ARGUMENTS", "GuestPages", "as_trace", "follow_pages", "followed_pages"]

KERNEL_ARGUMENTS: Final = (
    "trace_event=kmem:mm_page_alloc,kmem:mm_page_free trace_buf_size=16M trace_clock=x86-tsc"
)
"""What a guest's kernel boots with to tell of its pages."""

_BUDDY: Final = 1 << 10  # KPF_BUDDY of <linux/kernel-page-flags.h>
_MARKS: Final = 20
"""Marks at each end: that with the narrowest bounds counts."""
_BEGIN: Final = "mount -t tracefs tracefs /sys/kernel/tracing"
_END: Final = """
cd /sys/kernel/tracing
echo 0 >tracing_on
grep -h overrun per_cpu/cpu*/stats
"""
_LINE: Final = (
    r"-(\d+) .* (\d+): (mm_page_alloc|mm_page_free): page=\S+ pfn=(?:0x)?([0-9a-f]+) order=(\d+)"
    r"(?: migratetype=\d+ gfp_flags=(\S+))?"
)
_MARK: Final = re.compile(r" (\d+): tracing_mark_write: tracekit (\d+)")


@dataclass(frozen=True)
class GuestPages:
    """A guest's account of its pages, as text: what its kernel said, packed by `_packed`.

    `flags` are those of every page, `events` ftrace's lines; `marks_ns` bounds the host's times of the marks
    in the events, the first half of which came before the others. `zeroes_all`: the guest's kernel zeroes
    each page that it gives out (init_on_alloc).
    """

    flags: str
    events: str
    marks_ns: list[tuple[int, int]]
    zeroes_all: bool


def follow_pages(qemu: Qemu) -> list[tuple[int, int]]:
    """Begin (the guest was booted with `KERNEL_ARGUMENTS`): return the host's times around its marks."""
    qemu.run(_BEGIN)
    return _mark(qemu, 0)


def followed_pages(qemu: Qemu, begun: list[tuple[int, int]]) -> GuestPages:
    """End: return all that the guest's kernel said. Raises `FailedError` where its buffer was too small."""
    ended = _mark(qemu, _MARKS)
    losses = qemu.run(_END)
    if any(int(line.split()[-1]) for line in losses.splitlines() if "overrun" in line):
        raise FailedError(
            "the guest's trace buffer was too small for its pages' events", hint="a smaller --alloc"
        )
    flags = _packed(qemu.take("cat /proc/kpageflags"))
    events = qemu.take("cat /sys/kernel/tracing/trace")
    zeroes_all = "heap alloc:on" in qemu.run("dmesg | grep 'mem auto-init' || true")
    return GuestPages(flags, _packed(events), [*begun, *ended], zeroes_all)


def _mark(qemu: Qemu, first: int) -> list[tuple[int, int]]:
    return qemu.timed(f"echo tracekit $((i + {first})) >/sys/kernel/tracing/trace_marker", _MARKS)


def _packed(said: bytes) -> str:
    return base64.b64encode(gzip.compress(said, 1)).decode()


def as_trace(pages: GuestPages, path: Path, *, force: bool = False) -> Trace:
    """Write the account as a guest-side trace on the host's clock and open it.

    How far off its times may be stands in meta.json as `clock.uncertainty_ns`. Raises `FailedError` where the
    events hold no marks.
    """
    text = gzip.decompress(base64.b64decode(pages.events)).decode()
    clock = _clock(text, pages.marks_ns)
    rows = (
        pl.DataFrame({"line": text.splitlines()})
        .select(pl.col("line").str.extract_groups(_LINE).struct.unnest())
        .filter(pl.col("1").is_not_null())
        .select(
            pl.col("1").cast(pl.Int64).alias("tid"),
            pl.col("2").cast(pl.Int64).alias("ticks"),
            pl.col("3").str.strip_prefix("mm_").alias("kind"),
            pl.col("4").str.to_integer(base=16).alias("gfn"),
            pl.lit(2, pl.Int64).pow(pl.col("5").cast(pl.Int64)).alias("pages"),
            pl.col("6").fill_null("").str.contains("__GFP_ZERO", literal=True).alias("zeroed"),
        )
        .filter(pl.col("gfn") > 0)
        .sort("ticks", maintain_order=True)
    )
    alloc = (rows["kind"] == "page_alloc").to_numpy()
    times = clock.to_host(rows["ticks"].to_numpy())
    gfn, count = rows["gfn"].to_numpy(), rows["pages"].to_numpy()
    start = int(times[0]) - 1
    meta = Meta(source="recorded", start_ns=start, stop_ns=int(times[-1]), extra={"side": "guest"})
    meta.clock["uncertainty_ns"] = clock.uncertainty_ns(int(rows["ticks"][0]))
    first, length = _free_at_start(pages.flags, gfn, count, alloc)
    with TraceWriter(path, meta, force=force) as writer:
        writer.append(
            events_batch(
                ts_ns=np.full(len(first), start), kind="page_free", gfn=first, pages=length, flags=FLAG_ATTACH
            )
        )
        zeroed = alloc & (rows["zeroed"].to_numpy() | pages.zeroes_all)
        writer.append(
            events_batch(
                ts_ns=times,
                kind=rows["kind"].to_list(),
                tid=rows["tid"].to_numpy(),
                gfn=gfn,
                pages=count,
                flags=np.where(zeroed, FLAG_ZEROED, 0),
            )
        )
    return open_trace(path)


@dataclass(frozen=True)
class _Clock:
    """host ns = `at_ns` + (ticks - `ticks`) * `rate`; `early_ns`, `late_ns`: how far off at either end."""

    ticks: int
    at_ns: int
    rate: float
    span: int
    early_ns: int
    late_ns: int

    def to_host(self, ticks: np.ndarray) -> np.ndarray:
        moved: np.ndarray = self.at_ns + np.rint((ticks - self.ticks) * self.rate).astype(np.int64)
        return moved

    def uncertainty_ns(self, ticks: int) -> int:
        """Return how far off the time of some earlier ticks may be."""
        before = max(self.ticks - ticks, 0) / self.span
        return round(self.early_ns + (self.early_ns + self.late_ns) * before)


def _clock(text: str, marks_ns: list[tuple[int, int]]) -> _Clock:
    found = {int(number): int(at) for at, number in _MARK.findall(text)}
    if len(found) < len(marks_ns):
        raise FailedError("the guest's events lack its marks", hint="run it again")
    half = len(marks_ns) // 2
    ticks = np.array([found[number] for number in range(len(marks_ns))])
    low, high = np.array(marks_ns).T
    first, last = ticks[0], ticks[half]
    rate = float(low[half] - low[0]) / float(last - first)
    bounds: list[tuple[int, int]] = []
    for _ in range(2):  # the second time with the rate that the first one found
        bounds = [
            _bounds(ticks[part] - ticks[part][0], low[part], high[part], rate)
            for part in (slice(half), slice(half, None))
        ]
        rate = (sum(bounds[1]) - sum(bounds[0])) / 2 / float(last - first)
    early, late = ((after - before) // 2 for before, after in bounds)
    return _Clock(int(first), sum(bounds[0]) // 2, rate, int(last - first), early, late)


def _bounds(ticks: np.ndarray, low: np.ndarray, high: np.ndarray, rate: float) -> tuple[int, int]:
    """Return between which host times zero ticks were, by all marks of one end together."""
    since = np.rint(ticks * rate).astype(np.int64)
    before, after = int((low - since).max()), int((high - since).min())
    return min(before, after), max(before, after)


def _free_at_start(
    flags: str, gfn: np.ndarray, count: np.ndarray, alloc: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return first gfn and length of each run of pages that were free before the first event."""
    words = np.frombuffer(gzip.decompress(base64.b64decode(flags)), np.uint64)
    free = words & _BUDDY != 0
    inside = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    each, by_alloc = np.repeat(gfn, count) + inside, np.repeat(alloc, count)
    page, first = np.unique(each, return_index=True)
    known = page < len(free)
    free[page[known]] = by_alloc[first[known]]
    edges = np.flatnonzero(np.diff(np.concatenate([[False], free, [False]]).astype(np.int8)))
    return edges[::2], edges[1::2] - edges[::2]
