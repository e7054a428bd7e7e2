"""DAMON records of damo: its JSON (plain, or zlib-compressed as `damo record` writes it) and its raw report.

`damo report access --raw_form` text is streamed; JSON has to be in memory as a whole. perf.data and perf
script text of damon:damon_aggregated are read by the perf importers. A row's `ts_ns` is its
snapshot's end, `arg` the number of samples in which the region was seen accessed.
"""

from __future__ import annotations

import json
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from tracekit.datasets.importers.blocks import line_blocks, open_bytes
from tracekit.datasets.importers.damo_regions import is_region, regions_of
from tracekit.datasets.importers.sink import Sink
from tracekit.errors import DamagedError
from tracekit.trace import events_batch

__all__ = ["duration_ns", "read_damo_json", "read_damo_raw"]

_MOST_BYTES = 1 << 30  # of decompressed JSON
_Times = npt.NDArray[np.uint64]
_Vms = npt.NDArray[np.uint16]

_UNIT_NS = {"ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}
_UNIT_NS["d"] = 24 * _UNIT_NS["h"]
_PART = re.compile(r"([\d,.]+)\s*([a-z]+)?")
_HEADING = re.compile(r"^(base_time_absolute|monitoring_end|target_id):\s*(.*)$")
_QUIET = r"^(#.*|data source:.*|monitoring_start:.*|monitoring_duration:.*|nr_regions:.*|\s*)$"


def duration_ns(text: str) -> int:
    """Return nanoseconds of damo's times: a plain number is nanoseconds.

    >>> duration_ns("1 h 6 m 18 s 891 ms 560 us"), duration_ns("104.599 ms"), duration_ns("1,250")
    (3978891560000, 104599000, 1250)
    """
    total = 0.0
    parts = _PART.findall(text)
    if not parts or _PART.sub("", text).strip():
        raise ValueError(text)
    exact = 0
    for number, unit in parts:
        plain = number.replace(",", "")
        if "." in plain:
            total += float(plain) * _UNIT_NS[unit or "ns"]
        else:
            exact += int(plain) * _UNIT_NS[unit or "ns"]
    return exact + round(total)


def read_damo_json(path: Path | str, sink: Sink) -> None:
    """Read damo's JSON records. Raises DamagedError when it is something else."""
    with open_bytes(path) as stream:
        content = b"".join(iter(lambda: bytes(stream.read(1 << 22)), b""))
    try:
        text = content if content.lstrip()[:1] in (b"[", b"{") else _decompressed(content)
        records = json.loads(text)
        sink.report.lines = text.count(b"\n") + 1
        targets: dict[Any, int] = {}
        for record in records if isinstance(records, list) else [records]:
            vm = targets.setdefault(record["target_id"], len(targets))
            for snapshot in record["snapshots"]:
                _snapshot(sink, vm, snapshot)
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        OverflowError,
        RecursionError,
        zlib.error,
    ) as error:
        raise DamagedError(
            f"{path} is not a record of damo: {type(error).__name__} {error}",
            hint="damo report access --json --raw_number > FILE",
        ) from None
    sink.vms([-1] * len(targets))


def _decompressed(content: bytes) -> bytes:
    """Return what was compressed; ValueError where it is cut off or larger than a record can be."""
    unpacker = zlib.decompressobj()
    text = unpacker.decompress(content, _MOST_BYTES)
    if not unpacker.eof:
        raise ValueError(f"cut off, or more than {_MOST_BYTES >> 20} MiB of text")
    return text


def _snapshot(sink: Sink, vm: int, snapshot: dict[str, Any]) -> None:
    regions = snapshot["regions"]
    # A column at a time: damo writes numbers as text, with commas.
    columns = [
        np.array([int(str(value).replace(",", "")) for value in values], np.uint64)
        for values in (
            (region["start"] for region in regions),
            (region["end"] for region in regions),
            (_samples(region["nr_accesses"]) for region in regions),
        )
    ]
    _rows(sink, vm, duration_ns(str(snapshot["end_time"])), columns)


def _samples(accesses: Any) -> Any:
    return accesses["samples"] if isinstance(accesses, dict) else accesses


def read_damo_raw(path: Path | str, sink: Sink) -> None:
    """Read the text of `damo report access --raw_form` (older: `damo report raw`); `-` is stdin."""
    headings = _Headings(sink)
    before = 0
    with open_bytes(path) as stream:
        for block in line_blocks(stream):
            lines = regions_of(block)
            ends_ns, vms, changes = headings.read(lines.others(block), before)
            if lines.start.size:
                # A region belongs to the last heading above it.
                under = np.searchsorted(changes, lines.number, "right")
                _rows(sink, vms[under], ends_ns[under], [lines.start, lines.end, lines.accesses])
            before += lines.ends.size
            sink.report.lines = before
    sink.vms([-1] * len(headings.targets))


class _Headings:
    """What the headings of a raw report say of the regions below them, from block to block."""

    def __init__(self, sink: Sink) -> None:
        self.targets: dict[str, int] = {}
        self._sink = sink
        self._base_ns = self._end_ns = self._vm = 0

    def read(self, others: pl.DataFrame, before: int) -> tuple[_Times, _Vms, list[int]]:
        """Return (ends_ns, vms, changes): what holds at the block's start, then from each line in `changes`.

        `others`: the lines (number, text) that are no regions; `before` lines of the file are above this
        block. Lines that are nothing of damo's are told as bad.
        """
        ends_ns, vms, changes = [self._end_ns], [self._vm], []
        for at, text in others.filter(~pl.col("text").str.contains(_QUIET)).rows():
            match = _HEADING.match(text)
            if not match:
                self._sink.bad(before + 1 + at, text, "not a region of damo")
                continue
            try:
                self._take(match[1], match[2].strip())
            except (ValueError, KeyError, OverflowError):
                self._sink.bad(before + 1 + at, text, "not a time of damo")
            ends_ns.append(self._end_ns)
            vms.append(self._vm)
            changes.append(at)
        return np.array(ends_ns, np.uint64), np.array(vms, np.uint16), changes

    def _take(self, key: str, value: str) -> None:
        if key == "base_time_absolute":
            self._base_ns = duration_ns(value)
        elif key == "monitoring_end":
            end_ns = self._base_ns + duration_ns(value)
            if end_ns >= 1 << 64:
                raise ValueError(value)
            self._end_ns = end_ns
        else:
            self._vm = self.targets.setdefault(value, len(self.targets))
            if self._vm >= 1 << 16:
                raise DamagedError("the report has more than 65,536 targets")


def _rows(
    sink: Sink,
    vm: int | _Vms,
    ts_ns: int | _Times,
    regions: list[npt.NDArray[np.uint64]],
) -> None:
    start, end, accesses = regions
    if not is_region(start, end).all():
        raise ValueError("a region ends before it begins, or beyond all addresses")
    virtual = sink.options.addresses == "gva"
    where = {"gva": start} if virtual else {"gfn": start >> np.uint64(12)}
    sink.batch(
        events_batch(
            ts_ns=np.broadcast_to(np.asarray(ts_ns, np.uint64), start.shape),
            kind="access",
            vm=vm,
            pages=((end - start + np.uint64(4095)) >> np.uint64(12)).astype(np.uint32),
            arg=accesses,
            **where,
        )
    )
