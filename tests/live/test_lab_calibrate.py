"""A short calibration of this host: every cost is measured, and their order is that of the work they do."""

from __future__ import annotations

import pytest

from tracekit.lab.calibrate.measure import RECIPES
from tracekit.lab.calibrate.profile import calibrate

pytestmark = pytest.mark.live("kvm")


def test_a_short_calibration_measures_every_cost():
    result = calibrate(rounds=5, sizes=(32 << 20, 128 << 20))
    costs = result.costs
    assert set(costs) == set(RECIPES)
    assert all(0 < cost.low <= cost.ns <= cost.high and cost.samples == 5 for cost in costs.values())
    # A large page costs more than a small one, and much less than the 512 it stands for.
    for kind in ("ept", "host_minor", "prefault"):
        assert costs[f"{kind}_4k"].ns < costs[f"{kind}_2m"].ns < 512 * costs[f"{kind}_4k"].ns
    # A guest's fault holds the host's fault and the exit.
    assert costs["ept_4k"].ns > costs["prefault_4k"].ns
    times = {(side, size): one.ns for side, size, one in result.zeroing}
    for side in ("guest", "host"):
        assert times[side, 128 << 20] > 2 * times[side, 32 << 20]
