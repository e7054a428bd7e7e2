"""`--vary`: values by hand, and every mistake shown at its character."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracekit.errors import TracekitError, UsageError
from tracekit.replay.uncertainty import parse_variation, parse_variations, points


@pytest.mark.parametrize(
    ("text", "values", "scale"),
    [
        ("hot_hint.lead_ms=1:100:log:3", [1, 10, 100], "log"),
        ("a=0:10:lin:5", [0, 2.5, 5, 7.5, 10], "lin"),
        ("a=0:9", list(range(10)), "lin"),
        ("a=-1:1:3", [-1, 0, 1], "lin"),
        ("a=1:512:log", [2**i for i in range(10)], "log"),
        ("a=1,2,5e-1", [1, 2, 0.5], None),
        ("swap.limit_bytes=1G:4G:log:3", [1 << 30, 2 << 30, 4 << 30], "log"),
        ("a=4K", [4096], None),
        ("a=3,1,2", [3, 1, 2], None),
    ],
)
def test_values_by_hand(text: str, values: list[float], scale: str | None) -> None:
    found = parse_variation(text)
    assert isinstance(found.values, np.ndarray)
    assert found.values == pytest.approx(values)
    assert found.scale == scale
    assert found.name == text.partition("=")[0]


def test_both_ends_are_exact() -> None:
    found = parse_variation("a=0.1:0.7:log:20")
    assert isinstance(found.values, np.ndarray)
    assert (found.values[0], found.values[-1], len(found.values)) == (0.1, 0.7, 20)


def test_words_are_a_list_of_words() -> None:
    found = parse_variation("swap.device=zram, nvme,hdd")
    assert found.values == ("zram", "nvme", "hdd")
    assert parse_variation("cold_hint.policy=idle,2").values == ("idle", "2")
    with pytest.raises(UsageError, match="takes words") as error:
        found.parameter  # noqa: B018
    assert (error.value.hint or "").startswith("--set swap.device=zram")


def test_a_range_is_a_parameter() -> None:
    parameter = parse_variation("lead_ms=1:100:log:20").parameter
    assert (parameter.name, parameter.low, parameter.high, parameter.scale) == ("lead_ms", 1, 100, "log")


@pytest.mark.parametrize(
    ("text", "bad", "what"),
    [
        ("lead_ms=1:1x0:log:20", 11, "'1x0' is not a number"),
        ("lead_ms=1:100:lgo:20", 14, "'lgo' is not lin, log or a count"),
        ("lead_ms=1:100:log:two", 18, "'two' is not a count"),
        ("lead_ms=1:100:log:", 18, "a count is missing"),
        ("lead_ms=1:100:log:1", 18, "the count must be 2"),
        ("lead_ms=1:100:log:20:7", 20, "nothing may follow"),
        ("lead_ms=1:100:20:log", 16, "nothing may follow"),
        ("lead_ms=1:", 10, "a number is missing"),
        ("lead_ms=:1", 8, "a number is missing"),
        ("lead_ms=100:1", 12, "ends at 1 but starts at 100"),
        ("lead_ms=5:5", 10, "ends at 5"),
        ("lead_ms=0:1:log", 8, "above 0"),
        ("lead_ms=1,,2", 10, "a value is missing"),
        ("lead_ms=1,", 10, "a value is missing"),
        ("lead_ms=", 8, "has no values"),
        ("lead_ms", 7, "'=' is missing"),
        ("lead-ms=1:2", 4, "'-' can't stand"),
        ("hot_hint.=1:2", 8, "'.' can't stand"),
        ("=1:2", 0, "a name is missing"),
        ("", 0, "a name is missing"),
        ("a=1e999:2", 2, "too large"),
        ("a=1:nan", 4, "'nan' is not a number"),
        ("a=1:٣", 4, "is not a number"),
    ],
)
def test_mistakes_are_shown_at_their_character(text: str, bad: int, what: str) -> None:
    with pytest.raises(UsageError, match=what.replace("(", r"\(")) as caught:
        parse_variation(text)
    shown, caret = caught.value.message.split("\n")[-2:]
    assert shown == f"  {text}"
    assert caret.index("^") - 2 == bad
    assert caught.value.hint


@given(st.text(alphabet="ab.=:,019eElogin-+KMG x", max_size=24))
def test_any_text_gives_values_or_a_typed_error(text: str) -> None:
    try:
        found = parse_variation(text)
    except TracekitError:
        return
    assert len(found.values) >= 1


def test_combinations_and_repeats() -> None:
    found = points(parse_variations(["a=1:2:2", "b=x,y,z"]))
    assert len(found) == 6
    assert found[0] == {"a": 1.0, "b": "x"}
    assert found[-1] == {"a": 2.0, "b": "z"}
    assert points([]) == [{}]
    with pytest.raises(UsageError, match="a is varied twice"):
        parse_variations(["a=1", "a=2"])
    with pytest.raises(UsageError, match="too many"):
        points(parse_variations([f"{name}=1:2:1000" for name in "abc"]))
