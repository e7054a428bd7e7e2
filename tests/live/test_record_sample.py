"""A recording that keeps a share of the guest's memory: whole blocks, and the counts of what it left out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.live.recording import GUEST, of_kind, record_command
from tracekit.trace.sampling import BLOCK_PAGES, hashed

RATE = 0.5


@pytest.mark.live("kvm", "bpf", "root")
def test_a_sample_is_whole_blocks_and_knows_how_much_it_left_out(tmp_path: Path) -> None:
    trace, _ = record_command(tmp_path / "x.trace", *GUEST, sample=RATE)
    faults = of_kind(trace, "ept_violation")
    blocks = np.unique(faults["gfn"].to_numpy() // BLOCK_PAGES)
    assert (hashed(np.zeros(len(blocks), np.uint64), blocks, seed=0) < RATE).all()
    facts = trace.meta.sampling
    assert facts["gfn_hash"] == RATE
    assert 0 < facts["faults_kept"] < facts["faults_before"]
    assert facts["rows_before"] > trace.rows
    # Each block that is there has all of its pages, as the guest touches them one by one.
    touched = faults.filter(faults["gfn"] // BLOCK_PAGES == int(blocks[-1]))["gfn"].n_unique()
    assert touched == BLOCK_PAGES
