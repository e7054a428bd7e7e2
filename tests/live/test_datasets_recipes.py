"""Recording a bundled trace anew gives the same pages, on a real guest."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from tracekit.datasets.catalog import trace_path
from tracekit.trace import open_trace


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
