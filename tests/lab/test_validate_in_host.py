"""A validation's runs in the lab host: recorded there, read here."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from tracekit.errors import CapabilityError
from tracekit.lab.validate.recording import kept_runs, record_in_lab_host

pytestmark = pytest.mark.live("qemu-system-x86_64")


def test_a_cases_runs_are_recorded_in_one_lab_host(tmp_path: Path) -> None:
    try:
        record_in_lab_host(
            ["hugepages"], 3, tmp_path, part="sequential sparse", baselines=2, say=lambda _: None
        )
    except CapabilityError as error:
        pytest.skip(f"the lab host can't be made: {error} ({error.hint})")
    runs = kept_runs("hugepages-sequential-sparse-touch-3", tmp_path)
    assert len(runs.baselines) == 2
    for found in (*runs.baselines, runs.real):
        assert found.trace.meta.host["mmu_mode"] == "npt"
        assert (found.trace.lost, len(found.trace.meta.vms)) == (0, 1)
    for found in runs.baselines:
        touched = found.trace.events.filter(
            pl.col("kind") == "ept_violation", pl.col("gfn") >= found.account["first_gfn"]
        )
        assert touched.select(pl.col("gfn").n_unique()).collect().item() == 2039
