"""A small trace and a result whose every figure can be worked out by hand, for the report's tests."""

from __future__ import annotations

import contextlib
import io
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import polars as pl

from tracekit.trace import Meta, Trace, TraceWriter, events_batch, open_trace

MS = 1_000_000
START = 5_000 * MS
HVA = 1 << 40
HOSTILE = (
    '</script><script>document.title="owned"</script><img src=x onerror=alert(1)>\x1b[31m\x1b]0;owned\x07'
)


def ledger_row(
    metric: str, unit: str, baseline: float | None, saved: float | None, **more: Any
) -> dict[str, Any]:
    counterfactual = None if baseline is None or saved is None else baseline - saved
    row = {
        "scenario": "zeroing",
        "mechanism": "zeroing",
        "metric": metric,
        "unit": unit,
        "baseline": baseline,
        "counterfactual": counterfactual,
        "saved": saved,
        "low": saved,
        "high": saved,
        "label": "measured",
    }
    return row | more


def result_rows() -> pl.DataFrame:
    """Three scenarios; the third combines two mechanisms, whose savings add up to the total."""
    both: dict[str, Any] = {"scenario": "both", "label": "bounded"}
    hot: dict[str, Any] = {"scenario": "hot_hint,lead_ms=5", "mechanism": "hot_hint", "label": "assumed"}
    rows = [
        ledger_row("faults", "count", 1000, 250),
        ledger_row("stall", "ns", 8e9, 2e9, low=1e9, high=3e9, label="bounded"),
        ledger_row("resident_peak", "bytes", 1 << 30, 1 << 28),
        ledger_row("faults", "count", 1000, 900, low=700, high=950, **hot),
        ledger_row("stall", "ns", 8e9, 6e9, low=4e9, high=7e9, **hot),
        ledger_row("resident_peak", "bytes", 1 << 30, -(1 << 27), low=-(1 << 28), high=0, **hot),
        ledger_row("prefaults_wasted", "count", 0, None, low=None, high=None, **hot),
        ledger_row("stall", "ns", 8e9, 7e9, low=5e9, high=8e9, mechanism="all", **both),
        ledger_row("stall", "ns", 8e9, 2e9, low=1e9, high=3e9, mechanism="zeroing", **both),
        ledger_row("stall", "ns", 6e9, 5e9, low=4e9, high=5e9, mechanism="hot_hint", **both),
    ]
    return pl.from_dicts(rows, infer_schema_length=None)


def example_meta(**more: Any) -> Meta:
    return Meta(
        source=more.pop("source", "recorded"),
        host={"kernel": "6.18.1", "cpu": "Example CPU", "cpus": 2, "mmu_mode": "shadow"},
        vms=[{"pid": 7, "argv": ["qemu", "-name", HOSTILE], "vcpus": 2, "page_bytes": 4096}],
        command=["tracekit", "record", "--", HOSTILE],
        **more,
    )


def write_example(path: Path, *, lost: int = 0, **meta: Any) -> Trace:
    """Write 4 s: pages 0..999 touched once, 0..99 discarded, 0..99 touched again, 40 of 2 MiB faults.

    By hand: 1,000 + 40 first touches of 1,000 + 40 x 512 pages, 100 refaults, 100 pages discarded;
    stall 1,100 x 3 us + 40 x 200 us = 11.3 ms; a balloon of 64 pages in one inflate.
    """
    with TraceWriter(path, example_meta(**meta)) as writer:
        first = np.arange(1000)
        writer.append(_faults(START + first * MS, first, level=1, latency_ns=3_000))
        big = np.arange(40)
        writer.append(
            _faults(START + 1000 * MS + big * MS, 4096 + big * 512, level=2, latency_ns=200_000, pages=512)
        )
        again = np.arange(100)
        writer.append(events_batch(ts_ns=START + 2000 * MS + again, kind="madvise", tid=1, gfn=again, arg=4))
        writer.append(_faults(START + 3000 * MS + again * MS, again, level=1, latency_ns=3_000))
        writer.append(
            events_batch(ts_ns=[START + 4000 * MS], kind="balloon_inflate", tid=1, gfn=900, pages=64)
        )
        writer.add_memslot(
            vm=0,
            slot=0,
            gpa=0,
            size_bytes=1 << 30,
            hva=HVA,
            flags=0,
            from_ns=0,
            to_ns=None,
            known_by="ioctl",
        )
        for second in range(5):
            writer.add_sample(START + second * 1000 * MS, 0, "rss_bytes", float((second + 1) << 24))
        if lost:
            writer.add_loss(cpu=1, t0_ns=START + MS, t1_ns=START + 2 * MS, lost=lost, reason="ring full")
    return open_trace(path)


def _faults(ts_ns: Any, gfn: Any, **more: Any) -> Any:
    return events_batch(ts_ns=ts_ns, kind="ept_violation", tid=100, vcpu=0, gfn=gfn, **more)


def command(*args: str | Path, cwd: Path) -> Any:
    """Run one command line in this process; return its returncode, stdout and stderr."""
    from tracekit.cli import main

    out, err = io.StringIO(), io.StringIO()
    code = 0
    with (
        contextlib.chdir(cwd),
        mock.patch.object(sys, "argv", ["tracekit", *map(str, args)]),
        mock.patch.dict("os.environ", {"COLUMNS": "80"}),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
    return SimpleNamespace(returncode=code, stdout=out.getvalue(), stderr=err.getvalue())
