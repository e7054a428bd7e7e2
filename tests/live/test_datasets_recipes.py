"""Recording a bundled trace anew gives the same pages, on a real guest."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from tracekit.datasets.catalog import trace_path
from tracekit.datasets.recipes import RECIPES, record
from tracekit.trace import open_trace
from tracekit.trace.schema import FLAG_ATTACH, FLAG_ZEROED


@pytest.mark.live
def test_small_guest_is_recorded_anew_with_the_same_guest_pages(tmp_path: Path) -> None:
    name = "small-guest-zero-then-use"
    out = tmp_path / "again.trace"
    done = subprocess.run(
        [sys.executable, "-m", "tracekit", "datasets", "make", name, "-o", str(out), "--json"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["source"] == "recorded"
    again, bundled = (
        open_trace(path).events.filter(pl.col("kind") == "ept_violation").select("gfn", "level").collect()
        for path in (out, trace_path(name))
    )
    assert again.equals(bundled)


@pytest.mark.live("qemu-system-x86_64")
def test_a_linux_guest_is_recorded_from_both_sides(tmp_path: Path) -> None:
    words = ("lab", "linux", "--memory", "160M", "--alloc", "16M", "--balloon", "144M", "--settle", "0")
    recipe = dataclasses.replace(
        RECIPES["linux-balloon-reporting"], command=("tracekit", *words, "--guest-trace", "guest.trace")
    )
    record(recipe, tmp_path / "both.trace")
    trace = open_trace(tmp_path / "both.trace")
    offset = json.loads((trace.path / "meta.json").read_text())["merge"]["offset"]
    # Thousands of pages that both saw agree on the clocks within some microseconds.
    assert offset["pairs"] > 5_000
    assert offset["contradicting"] < offset["pairs"] / 100
    assert 0 < offset["high_ns"] - offset["low_ns"] < 2_000_000
    events = trace.events.select("kind", "gfn", "pages", "flags", "tid").collect()
    allocated = events.filter(pl.col("kind") == "page_alloc")
    assert set(allocated["flags"]) == {FLAG_ZEROED}  # Debian's kernel: init_on_alloc
    assert allocated.group_by("tid").agg(pl.col("pages").sum())["pages"].max() >= (16 << 20) // 4096
    for kind in ("balloon_inflate", "balloon_deflate"):
        assert events.filter(pl.col("kind") == kind)["pages"].sum() == (16 << 20) // 4096
    # What was free before the first event, and no more than there is.
    before = events.filter((pl.col("kind") == "page_free") & (pl.col("flags") == FLAG_ATTACH))
    assert (64 << 20) // 4096 < before["pages"].sum() < (160 << 20) // 4096
