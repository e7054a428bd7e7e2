"""The calibration's spreads and the profile it writes, without a guest."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from tracekit.errors import UsageError
from tracekit.lab.calibrate.measure import RECIPES, ZEROING
from tracekit.lab.calibrate.profile import Calibration, Spread, calibrate
from tracekit.lab.calibrate.recorded import _run, measure_recorded
from tracekit.probes.plan import RecordReport
from tracekit.replay.costs import COSTS, load_profile


def calibration() -> Calibration:
    costs = {name: Spread.of([100.0, 110.0, 400.0]) for name in RECIPES}
    zeroing = [("guest", 32 << 20, Spread.of([5e6, 6e6, 7e6]))]
    return Calibration({"hostname": 'a "host"', "cpus": 2}, costs, zeroing, 1.0)


def test_every_recipe_is_a_cost_that_replay_knows():
    assert set(RECIPES) <= set(COSTS)


def test_replay_loads_the_profile_and_fills_what_it_lacks(tmp_path: Path):
    path = tmp_path / "host.toml"
    calibration().save(path)
    profile = load_profile(path)
    assert profile.name == 'a "host"'
    assert profile.costs["ept_4k"].ns == 110
    assert profile.costs["ept_4k"].low == 102
    assert profile.costs["ept_4k"].high == 342
    assert profile.costs["ept_4k"].source.startswith("measured: small guest")
    assert profile.costs["ept_1g"] == load_profile().costs["ept_1g"]
    (zeroing,) = tomllib.loads(path.read_text())["zeroing"]
    assert zeroing == {
        "side": "guest", "size_bytes": 32 << 20, "zero_ns": 6000000, "low_ns": 5200000, "high_ns": 6800000,
        "samples": 3, "source": f"measured: {ZEROING['guest']}",
    }  # fmt: skip
    (told,) = calibration().to_json()["zeroing"]
    assert (told["samples"], told["recipe"]) == (3, ZEROING["guest"])


def test_the_profile_says_which_distribution_fits_and_how_well(tmp_path: Path):
    fitted = Spread.of([100.0, 110.0, 120.0, 130.0, 150.0, 170.0, 200.0, 400.0])
    path = tmp_path / "host.toml"
    Calibration({"hostname": "host"}, {"ept_4k": fitted}, [], 1.0).save(path)
    assert f"# fit: lognorm, D = {fitted.fit.ks:.2f}\n" in path.read_text()
    assert load_profile(path).costs["ept_4k"].ns == 140


def test_an_existing_profile_is_kept_unless_forced(tmp_path: Path):
    path = tmp_path / "host.toml"
    path.write_text("mine")
    with pytest.raises(UsageError) as caught:
        calibration().save(path)
    assert "--force" in caught.value.hint
    assert path.read_text() == "mine"
    calibration().save(path, force=True)
    assert load_profile(path).costs["ept_2m"].ns == 110
    with pytest.raises(UsageError, match="cannot write"):
        calibration().save(tmp_path / "no" / "folder")


def test_one_round_has_no_spread():
    with pytest.raises(UsageError, match="2 rounds"):
        calibrate(rounds=1)


def test_a_signal_that_the_recording_took_ends_the_calibration(monkeypatch, tmp_path):
    def record(plan):
        return RecordReport(plan.out, stopped_by="SIGINT")

    monkeypatch.setattr("tracekit.lab.calibrate.recorded.record", record)
    with pytest.raises(SystemExit) as ended:
        measure_recorded(2)
    assert ended.value.code == 130


def test_ctrl_c_ends_the_recorded_guests_without_a_traceback(monkeypatch, tmp_path):
    def guests(rounds: int):
        raise KeyboardInterrupt

    monkeypatch.setattr("tracekit.lab.calibrate.recorded._guests", guests)
    with pytest.raises(SystemExit) as ended:
        _run(["2", str(tmp_path / "said.json")])
    assert ended.value.code == 130
