"""A validation's run in the lab host: recorded there, read here."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from tracekit.errors import CapabilityError
from tracekit.lab.validate.case import Run
from tracekit.lab.validate.recording import record_run

pytestmark = pytest.mark.live("qemu-system-x86_64")


def test_a_run_is_recorded_in_a_lab_host_of_its_own(tmp_path: Path) -> None:
    try:
        found = record_run(Run(("lab", "guest", "--pages", "1009"), in_lab_host=True), tmp_path, "run")
    except CapabilityError as error:
        pytest.skip(f"the lab host can't be made: {error} ({error.hint})")
    assert found.trace.meta.host["mmu_mode"] == "npt"
    touched = found.trace.events.filter(
        pl.col("kind") == "ept_violation", pl.col("gfn") >= found.account["first_gfn"]
    )
    assert touched.select(pl.col("gfn").n_unique()).collect().item() == found.account["touched_pages"] == 1009
