"""A short validation on this host: what is counted comes out as predicted, whatever else the machine does."""

from __future__ import annotations

from pathlib import Path

import pytest

from tracekit.lab.validate.running import validate

pytestmark = pytest.mark.live("kvm", "bpf", "root")

COUNTED = ("exits", "resident_peak", "zeroed_twice")


@pytest.mark.parametrize("mechanism", ["prealloc", "zeroing"])
def test_counts_and_memory_are_as_predicted(mechanism: str, tmp_path: Path) -> None:
    found = validate([mechanism], tmp_path, profile="published", first_only=True)
    assert not found.left_out
    counted = [check for check in found.checks if check.metric in COUNTED]
    assert counted
    for check in counted:
        assert check.held, check
        assert check.error is None or check.error < 0.01, check
