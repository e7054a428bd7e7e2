"""A short calibration of this host: every cost is measured, and their order is that of the work they do."""

from __future__ import annotations

import pytest

from tracekit.lab.calibrate.measure import RECIPES
from tracekit.lab.calibrate.profile import calibrate

pytestmark = pytest.mark.live("kvm")


def in_the_order_of_their_work(costs, times) -> list[str]:
    """Say what is out of order: a large page costs more than a small one, and much less than its 512."""
    wrong = [
        kind
        for kind in ("ept", "host_minor", "prefault")
        if not costs[f"{kind}_4k"].ns < costs[f"{kind}_2m"].ns < 512 * costs[f"{kind}_4k"].ns
    ]
    # A guest's fault holds the host's fault and the exit.
    wrong += ["ept over prefault"] if costs["ept_4k"].ns <= costs["prefault_4k"].ns else []
    wrong += [side for side in ("guest", "host") if times[side, 128 << 20] <= 2 * times[side, 32 << 20]]
    return wrong


def test_a_short_calibration_measures_every_cost():
    always_wrong: set[str] | None = None
    for _ in range(5):  # few samples on a shared host: one may be disturbed, but not the same one each time
        result = calibrate(rounds=5, sizes=(32 << 20, 128 << 20))
        costs = result.costs.values()
        assert set(result.costs) == set(RECIPES)
        assert all(0 < cost.low <= cost.ns <= cost.high and cost.samples == 5 for cost in costs)
        times = {(side, size): one.ns for side, size, one in result.zeroing}
        wrong = set(in_the_order_of_their_work(result.costs, times))
        always_wrong = wrong if always_wrong is None else always_wrong & wrong
        if not always_wrong:
            return
    pytest.fail(f"out of order in every one of five calibrations: {always_wrong}")
