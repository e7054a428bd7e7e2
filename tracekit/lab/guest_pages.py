"""What a Linux guest's kernel says of its pages: which are free at a moment, and each one given out or taken
back from then on (its own ftrace), as the guest side of a trace.

What `tracekit record --guest` sees, for a guest that has no Python and no BPF compiler. Free at the start is
what /proc/kpageflags calls buddy; reading that costs the guest a few pages.
"""

from __future__ import annotations

import base64
import gzip
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl

from tracekit.errors import FailedError
from tracekit.lab.qemu import Qemu
from tracekit.trace import Meta, Trace, TraceWriter, open_trace
from tracekit.trace.batch import events_batch

__all__ = ["GuestPages", "as_trace", "follow_pages", "followed_pages"]

_BUDDY: Final = 1 << 10  # KPF_BUDDY of <linux/kernel-page-flags.h>
_BUFFER_KIB: Final = 32768
_BEGIN: Final = f"""
mount -t tracefs tracefs /sys/kernel/tracing 2>/dev/null
cd /sys/kernel/tracing
echo {_BUFFER_KIB} >buffer_size_kb; echo mono >trace_clock; echo >trace
for event in mm_page_alloc mm_page_free; do echo 1 >events/kmem/$event/enable; done
"""
_END: Final = """
cd /sys/kernel/tracing
echo 0 >tracing_on
grep -h overrun per_cpu/cpu*/stats
"""
_LINE: Final = r" (\d+)\.(\d{6}): (mm_page_alloc|mm_page_free): page=\S+ pfn=(?:0x)?([0-9a-f]+) order=(\d+)"
_MARK: Final = re.compile(r" (\d+)\.(\d{6}): tracing_mark_write: tracekit")


@dataclass(frozen=True)
class GuestPages:
    """A guest's account of its pages, as text: what its kernel said, packed by `_packed`.

    `flags` are those of every page, `events` ftrace's lines; `between_ns` bounds the host's time of the mark
    that stands in the events.
    """

    flags: str
    events: str
    between_ns: tuple[int, int]


def follow_pages(qemu: Qemu) -> tuple[str, tuple[int, int]]:
    """Begin: return the flags of all pages, and the host's times around a mark (which tells the offset)."""
    qemu.run(_BEGIN, timeout_s=300)
    flags = _packed(qemu.take("cat /proc/kpageflags", timeout_s=300))
    before = time.monotonic_ns()
    qemu.run("echo tracekit >/sys/kernel/tracing/trace_marker")
    return flags, (before, time.monotonic_ns())


def followed_pages(qemu: Qemu, begun: tuple[str, tuple[int, int]]) -> GuestPages:
    """End: return all that the guest's kernel said. Raises `FailedError` where its buffer was too small."""
    losses = qemu.run(_END, timeout_s=600)
    if any(int(line.split()[-1]) for line in losses.splitlines() if "overrun" in line):
        raise FailedError(
            "the guest's trace buffer was too small for its pages' events", hint="a smaller --alloc"
        )
    events = qemu.take("cat /sys/kernel/tracing/trace", timeout_s=600)
    return GuestPages(begun[0], _packed(events), begun[1])


def _packed(said: bytes) -> str:
    return base64.b64encode(gzip.compress(said, 1)).decode()


def as_trace(pages: GuestPages, path: Path) -> Trace:
    """Write the account as a guest-side trace on the host's clock and open it."""
    text = gzip.decompress(base64.b64decode(pages.events)).decode()
    mark = _MARK.search(text)
    if not mark:
        raise FailedError("the guest's events hold no mark", hint="a trace buffer that is larger")
    offset = sum(pages.between_ns) // 2 - _ns(*mark.groups())
    rows = (
        pl.DataFrame({"line": text.splitlines()})
        .select(pl.col("line").str.extract_groups(_LINE).struct.unnest())
        .drop_nulls()
        .select(
            (pl.col("1").cast(pl.Int64) * 10**9 + pl.col("2").cast(pl.Int64) * 1000 + offset).alias("ts_ns"),
            pl.col("3").str.strip_prefix("mm_").alias("kind"),
            pl.col("4").str.to_integer(base=16).alias("gfn"),
            pl.lit(2, pl.Int64).pow(pl.col("5").cast(pl.Int64)).alias("pages"),
        )
        .filter(pl.col("gfn") > 0)
        .sort("ts_ns", maintain_order=True)
    )
    first, count = _free_runs(pages.flags)
    start = int(rows["ts_ns"][0]) - 1
    meta = Meta(source="recorded", start_ns=start, stop_ns=int(rows["ts_ns"][-1]), extra={"side": "guest"})
    with TraceWriter(path, meta, force=True) as writer:
        writer.append(
            events_batch(ts_ns=np.full(len(first), start), kind="page_free", gfn=first, pages=count, arg=1)
        )
        writer.append(
            events_batch(
                ts_ns=rows["ts_ns"].to_numpy(),
                kind=rows["kind"].to_list(),
                gfn=rows["gfn"].to_numpy(),
                pages=rows["pages"].to_numpy(),
            )
        )
    return open_trace(path)


def _free_runs(flags: str) -> tuple[np.ndarray, np.ndarray]:
    """Return first gfn and length of each run of free pages."""
    words = np.frombuffer(gzip.decompress(base64.b64decode(flags)), np.uint64)
    free = np.concatenate([[False], words & _BUDDY != 0, [False]])
    edges = np.flatnonzero(free[1:] != free[:-1])
    return edges[::2], edges[1::2] - edges[::2]


def _ns(seconds: str, micros: str) -> int:
    return int(seconds) * 10**9 + int(micros) * 1000
