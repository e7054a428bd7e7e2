"""A short calibration of this host: which costs it holds, how often each was measured, how it is written.

How long anything took is not tested: that depends on what else the machine does.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from tracekit.lab.calibrate.measure import RECIPES
from tracekit.lab.calibrate.profile import calibrate
from tracekit.lab.calibrate.recorded import RECORDED
from tracekit.lab.calibrate.swapping import measure_swap_in
from tracekit.lab.kvm import CAP_PRE_FAULT_MEMORY, Kvm
from tracekit.replay.costs import load_profile
from tracekit.report.zeroing import zeroing_chart

pytestmark = pytest.mark.live("kvm", "bpf", "root")

ROUNDS = 2
SIZES = (32 << 20, 64 << 20)


def test_a_short_calibration_measures_every_cost(tmp_path: Path):
    said: list[str] = []
    result = calibrate(rounds=ROUNDS, sizes=SIZES, say=said.append)
    left_out = [line for line in said if line.startswith("left out")]
    with Kvm() as kvm:
        absent = set() if kvm.extension(CAP_PRE_FAULT_MEMORY) else {"map_ahead"}
    assert {*RECIPES, "epf_switch", "balloon_4k"} - absent <= set(result.costs)
    assert not absent & set(result.costs)
    assert set(RECORDED) <= set(result.costs) or any("not whole" in line for line in left_out)
    assert ("swap_in_zram" in result.costs) == ("page_out_zram" in result.costs)
    assert "swap_in_zram" in result.costs or any("zram" in line for line in left_out)
    assert "ksm_break_4k" in result.costs or any("KSM" in line for line in left_out)
    for name, cost in result.costs.items():
        assert 0 <= cost.low <= cost.ns <= cost.high, name
        if name == "worker_wake":
            assert cost.samples > ROUNDS  # a hint each
        else:
            assert cost.samples == ROUNDS, name
            assert cost.fit is None  # two samples fit anything
    assert [(side, size) for side, size, _ in result.zeroing] == [
        (side, size) for size in SIZES for side in ("guest", "host")
    ]
    for name, exits in (("epf_inject", 1), ("epf_ready", 2)):
        assert (name in result.costs) == ("exit" in result.costs)
        assert "exit" not in result.costs or result.costs[name].ns == exits * result.costs["exit"].ns
    result.save(tmp_path / "host.toml")
    profile = load_profile(tmp_path / "host.toml")
    assert profile.ns("unmap_4k") == pytest.approx(result.costs["unmap_4k"].ns, abs=0.1)
    beside = tomllib.loads((tmp_path / "host.toml").read_text())["beside"]
    assert set(beside) == {name for name in result.costs if name not in profile.costs}
    chart = tmp_path / "zeroing.svg"
    zeroing_chart(result.to_json()["zeroing"]).save(chart)
    assert chart.read_text().startswith("<svg")


def test_what_went_to_a_swap_file_is_read_from_it():
    said: list[str] = []
    before = _swapped_in()
    values = measure_swap_in(ROUNDS, 0.0, say=said.append).values
    if any("cannot swap to" in line for line in said):
        pytest.skip("; ".join(said))
    assert not said
    assert len(values["swap_in_file"]) == ROUNDS
    assert min(values["swap_in_file"]) > 0
    assert _swapped_in() - before >= 2 * (ROUNDS + 1) * 256  # at least half of each guest, from each place


def _swapped_in() -> int:
    lines = Path("/proc/vmstat").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("pswpin "))
