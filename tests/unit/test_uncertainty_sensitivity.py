"""Tornado, Sobol and break-even, against functions whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from tracekit.errors import FailedError, UsageError
from tracekit.replay.uncertainty import (
    Figure,
    Identification,
    Parameter,
    Sensitivity,
    Statistical,
    break_even,
    generator,
    sobol,
    sobol_evaluations,
    swing_rows,
    tornado,
)

F64 = NDArray[np.float64]


class Counted:
    """Counts the calls and rows of an evaluation."""

    def __init__(self, function: object) -> None:
        self.function, self.calls = function, []  # type: ignore[var-annotated]

    def __call__(self, rows: F64) -> F64:
        self.calls.append(len(rows))
        return np.asarray(self.function(rows))  # type: ignore[operator]


def test_tornado_of_a_linear_function_by_hand() -> None:
    evaluate = Counted(lambda x: 3 * x[:, 0] - 2 * x[:, 1] + 100 * x[:, 2])
    found = tornado(
        evaluate,
        [Parameter("a", 0, 10), Parameter("b", 1, 100, "log"), Parameter("c", 0, 1, nominal=0.25)],
    )
    # nominal: a 5, b 10 (geometric middle), c 0.25 -> 15 - 20 + 25 = 20
    assert evaluate.calls == [7]
    assert [(s.parameter, round(s.value_at_low, 9), s.value, round(s.value_at_high, 9)) for s in found] == [
        ("b", 38, 20, -160),  # 15 - 2 + 25; 15 - 200 + 25
        ("c", -5, 20, 95),
        ("a", 5, 20, 35),
    ]
    assert swing_rows(found)[0] == {
        "parameter": "b",
        "at_low": "1",
        "at_high": "100",
        "saved": found[0].value,
        "saved_at_low": found[0].value_at_low,
        "saved_at_high": found[0].value_at_high,
    }


def test_tornado_without_parameters_is_the_value_alone() -> None:
    assert tornado(lambda x: np.ones(len(x)), []) == []


def ishigami(x: F64) -> F64:
    return np.asarray(np.sin(x[:, 0]) + 7 * np.sin(x[:, 1]) ** 2 + 0.1 * x[:, 2] ** 4 * np.sin(x[:, 0]))


def test_sobol_of_ishigami() -> None:
    evaluate = Counted(ishigami)
    parameters = [Parameter(f"x{i}", -np.pi, np.pi) for i in (1, 2, 3)]
    found = {s.parameter: s for s in sobol(evaluate, parameters, n=2048, rng=generator(1, "sobol"))}
    assert evaluate.calls == [sobol_evaluations(3, 2048)] == [2048 * 5]
    # Ishigami & Homma 1990 with a = 7, b = 0.1.
    first = {"x1": 0.3139, "x2": 0.4424, "x3": 0.0}
    total = {"x1": 0.5576, "x2": 0.4424, "x3": 0.2437}
    for name, share in found.items():
        assert share.first == pytest.approx(first[name], abs=0.02)
        assert share.total == pytest.approx(total[name], abs=0.02)
        for value, interval in ((first[name], share.first_interval), (total[name], share.total_interval)):
            assert interval.low is not None
            assert interval.high is not None
            assert interval.low - 0.01 <= value <= interval.high + 0.01
            assert interval.high - interval.low < 0.25


def test_sobol_of_a_linear_function_on_its_scales_by_hand() -> None:
    # log10 of a log parameter from 1 to 100 is uniform on 0 … 2 (variance 4/12), b uniform on 0 … 1 (1/12):
    # shares 4/5 and 1/5, no interactions; c does nothing.
    parameters = [Parameter("a", 1, 100, "log"), Parameter("b", 0, 1), Parameter("c", 0, 9)]
    found = sobol(lambda x: np.log10(x[:, 0]) + x[:, 1], parameters, n=512, rng=generator(2))
    assert [s.parameter for s in found] == ["a", "b", "c"]
    assert [s.total for s in found] == pytest.approx([0.8, 0.2, 0.0], abs=0.01)
    assert [s.first for s in found] == pytest.approx([0.8, 0.2, 0.0], abs=0.02)


def test_sobol_is_bit_equal_and_a_constant_has_no_shares() -> None:
    parameters = [Parameter("a", 0, 1), Parameter("b", 0, 1)]
    one, two = (sobol(ishigami_2d, parameters, n=64, rng=generator(5)) for _ in range(2))
    assert one == two
    flat = sobol(lambda x: np.full(len(x), 3.5), parameters, n=64, rng=generator(5))
    assert [(s.first, s.total) for s in flat] == [(0, 0), (0, 0)]
    assert sobol(ishigami_2d, [], n=64, rng=generator(5)) == []


def ishigami_2d(x: F64) -> F64:
    return np.asarray(np.sin(x[:, 0]) * x[:, 1])


def test_values_that_are_not_finite_name_their_setting() -> None:
    parameters = [Parameter("a", 0, 4), Parameter("b", 1, 3)]
    with pytest.raises(FailedError, match="no finite value at 0, 2"):
        tornado(lambda x: np.where(x[:, 0] == 0, np.nan, x[:, 0]), parameters)
    with pytest.raises(UsageError, match="power of two"):
        sobol(ishigami_2d, parameters, n=100, rng=generator(0))


def test_a_best_place_within_the_range_is_a_swing() -> None:
    found = tornado(
        lambda x: -np.square(x[:, 0] - 0.5) + x[:, 1] / 9, [Parameter("a", 0, 1), Parameter("b", 0, 1)]
    )
    assert [one.parameter for one in found] == ["a", "b"]
    assert found[0].swing == pytest.approx(0.25)


def test_break_even_finds_the_one_crossing_in_few_calls() -> None:
    calls: list[int] = []

    def saving(lead: F64) -> F64:
        calls.append(len(lead))
        return np.asarray(np.log(lead / 3.1))

    found = break_even(saving, Parameter("lead_ms", 1, 100, "log"))
    (one,) = found.crossings
    assert one.at == pytest.approx(3.1, rel=1e-5)
    assert one.pays_above
    assert found.sentence() == "pays if lead_ms > 3.1 (between 1 and 100)"
    assert calls[0] == 33
    assert len(calls) < 25


def test_break_even_without_a_crossing_is_an_answer() -> None:
    p = Parameter("delay_s", 0, 10)
    never = break_even(lambda x: -1 - x, p)
    assert (never.crossings, never.lowest, never.highest) == ((), -11, -1)
    assert never.sentence() == "pays at none of 33 values of delay_s between 0 and 10"
    assert (
        break_even(lambda x: 0 * x, p).sentence()
        == "neither saves nor costs at any of 33 values of delay_s between 0 and 10"
    )
    assert (
        break_even(lambda x: 1 + x, p).sentence() == "pays at each of 33 values of delay_s between 0 and 10"
    )
    assert break_even(lambda x: np.minimum(5 - x, 0), p).sentence().startswith("pays at none")


def test_break_even_finds_every_crossing_of_the_grid() -> None:
    found = break_even(np.sin, Parameter("x", 1, 11))
    assert [c.at for c in found.crossings] == pytest.approx([np.pi, 2 * np.pi, 3 * np.pi], abs=1e-4)
    assert [c.pays_above for c in found.crossings] == [False, True, False]
    assert found.sentence() == "pays if x is in 1 … 3.14 or 6.28 … 9.42 (between 1 and 11)"


def test_break_even_shows_as_many_digits_as_tell_a_place() -> None:
    narrow = break_even(lambda x: x - 1234.5, Parameter("limit_mib", 1234, 1236))
    assert narrow.sentence() == "pays if limit_mib > 1234.5 (between 1234 and 1236)"
    zero = break_even(lambda x: -x, Parameter("x", -1, 1), grid=2)
    assert zero.sentence().startswith("pays if x < ")


def test_savings_without_a_bound_are_no_savings() -> None:
    open_below = break_even(lambda x: np.where(x < 5, -np.inf, 1.0), Parameter("x", 0, 10))
    assert open_below.crossings[0].at == pytest.approx(5, abs=1e-4)
    assert (open_below.lowest, open_below.highest) == (None, 1.0)
    with pytest.raises(FailedError, match="no finite value"):
        break_even(lambda x: x * np.nan, Parameter("x", 0, 10))


def test_break_even_at_a_jump_on_a_plateau_and_at_a_touch() -> None:
    jump = break_even(lambda x: np.where(x < 4.2, -5.0, 1.0), Parameter("x", 0, 10))
    assert jump.crossings[0].at == pytest.approx(4.2, abs=1e-4)
    plateau = break_even(lambda x: np.where(x < 2, -1.0, np.where(x > 8, 1.0, 0.0)), Parameter("x", 0, 10))
    assert [c.at for c in plateau.crossings] == [pytest.approx(8, abs=1e-4)]
    late = break_even(lambda x: np.maximum(x - 5, 0), Parameter("x", 0, 10))
    assert late.sentence() == "pays if x > 5 (between 0 and 10)"
    touch = break_even(lambda x: (x - 5) ** 2, Parameter("x", 0, 10), grid=11)
    assert (touch.crossings, touch.lowest) == ((), 0)
    assert touch.sentence() == "pays or is even at each of 11 values of x between 0 and 10"
    exact = break_even(lambda x: x - 5, Parameter("x", 0, 10), grid=11)
    assert [c.at for c in exact.crossings] == [pytest.approx(5, abs=1e-4)]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Parameter("a", 3, 3), "empty"),
        (lambda: Parameter("a", 0, float("inf")), "not finite"),
        (lambda: Parameter("a", 0, 3, "log"), "above 0"),
        (lambda: Parameter("a", 0, 3, nominal=5), "outside"),
    ],
)
def test_ranges_that_cannot_be_walked_are_refused(make: object, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        make()  # type: ignore[operator]


def test_the_three_kinds_stay_apart() -> None:
    figure = Figure(
        5.0,
        Identification(0.0, None),
        Statistical(4.0, 6.0, 0.95, 30),
        (Sensitivity("lead_ms", 1, 100, 5.0, 2.0, 9.0),),
    )
    written = figure.to_json()
    assert written["identification"] == {"low": 0.0, "high": None}
    assert written["statistical"] == {"low": 4.0, "high": 6.0, "level": 0.95, "units": 30, "note": ""}
    assert written["sensitivity"][0]["value_at_high"] == 9.0
    for a, b in ((Identification(0, 1), Statistical(0, 1, 0.95, 9)), (Identification(0, 1),) * 2):
        with pytest.raises(TypeError):
            a + b  # type: ignore[operator]
    with pytest.raises(ValueError, match="upside down"):
        Identification(2.0, 1.0)
    with pytest.raises(ValueError, match="NaN"):
        Statistical(float("nan"), 1.0, 0.95, 9)


def test_sobol_has_no_intervals_where_a_few_points_make_the_variance() -> None:
    # One setting in a hundred differs: of 128 points about one. Resampled, 5 of 100 intervals of the
    # first-order index held it (0.091).
    def rare(x: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray((x[:, 0] > 0.9) & (x[:, 1] > 0.9), np.float64)

    both = [Parameter("a", 0, 1), Parameter("b", 0, 1)]
    for seed in range(8):
        found = sobol(rare, both, n=64, rng=np.random.default_rng(seed))
        assert all(one.first_interval.low is None for one in found)
        assert found[0].first_interval.note
