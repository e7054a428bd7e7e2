"""Numbers, marks and hostile strings: what a reader of a report or terminal gets to see."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracekit.report.spark import bar, sparkline
from tracekit.report.text import plain
from tracekit.report.units import human, human_interval, human_share


@pytest.mark.parametrize(
    ("value", "unit", "shown"),
    [
        (0, "ns", "0 ns"),
        (1, "ns", "1.00 ns"),
        (999, "ns", "999 ns"),
        (1_000, "ns", "1.00 us"),
        (2_345_678, "ns", "2.35 ms"),
        (90_061e9, "ns", "25.0 h"),
        (1e21, "ns", "2.78e+08 h"),
        (-1_500, "ns", "-1.50 us"),
        (4096, "bytes", "4.00 KiB"),
        (3 << 40, "bytes", "3.00 TiB"),
        (65_537, "count", "65,537"),
        (12_345_678, "faults", "12.3 M"),
        (0.25, "count", "0.250"),
        (0.125, "fraction", "12.5 %"),
        (3, "GiB*s", "3.00 GiB s"),
        (0.5, "GiB*s", "512 MiB s"),
        (None, "ns", "unknown"),
        (math.nan, "bytes", "unknown"),
        (math.inf, "ns", "unbounded"),
    ],
)
def test_human(value: float | None, unit: str, shown: str) -> None:
    assert human(value, unit) == shown


@pytest.mark.parametrize(
    ("values", "unit", "shown"),
    [
        ((2e9, 1e9, 3e9), "ns", ("2.00 s", "[1.00, 3.00]")),
        ((2e9, 1, 3e9), "ns", ("2.00 s", "[1e-09, 3.00]")),
        ((0, -5e6, 5e6), "ns", ("0 ms", "[-5.00, 5.00]")),
        ((250, 200, 300), "count", ("250", "[200, 300]")),
        ((1 << 30, None, math.inf), "bytes", ("1.00 GiB", "[?, ?]")),
        ((None, 1, 2), "ns", ("unknown", "")),
    ],
)
def test_interval_shares_the_scale_of_its_value(
    values: tuple[float | None, ...], unit: str, shown: tuple[str, str]
) -> None:
    assert human_interval(*values, unit) == shown


@given(
    st.floats(allow_nan=False, allow_infinity=False, width=32), st.sampled_from(["ns", "bytes", "count", "x"])
)
def test_a_nonzero_value_never_looks_like_zero_and_keeps_its_sign(value: float, unit: str) -> None:
    shown = human(value, unit)
    assert shown.startswith("-") == (value < 0)
    if abs(value) >= 1e-6:
        assert any(digit in shown for digit in "123456789")


def test_share_of_nothing_has_no_percent() -> None:
    assert (human_share(1, 0), human_share(None, 4), human_share(1, None), human_share(2, 3)) == (
        "",
        "",
        "",
        "67 %",
    )


def test_sparkline_keeps_a_short_peak_and_shows_gaps() -> None:
    values = [0.0] * 999 + [7.0]
    line = sparkline(values, width=10)
    assert (len(line), line[-1], line[:-1]) == (10, "█", " " * 9)
    assert sparkline([1, math.nan, None, math.inf, 1]) == "█   █"
    assert sparkline([0, 1, 1000], ascii_only=True) == " .@"
    assert sparkline([5, 10], top=10) == "▄█"


@given(st.lists(st.one_of(st.none(), st.floats()), max_size=200), st.integers(1, 60))
def test_sparkline_never_exceeds_its_width(values: list[float | None], width: int) -> None:
    assert len(sparkline(values, width=width)) == min(width, len(values))


@given(st.one_of(st.none(), st.floats()), st.floats(), st.integers(1, 40), st.booleans())
def test_bar_has_exactly_its_width(value: float | None, top: float, width: int, ascii_only: bool) -> None:
    assert len(bar(value, top, width=width, ascii_only=ascii_only)) == width


def test_bar_is_proportional() -> None:
    assert bar(5, 10, width=4) == "██  "
    assert bar(1e-9, 10, width=4) == "▏   "
    assert bar(20, 10, width=4) == "████"


@given(st.text())
def test_plain_text_cannot_drive_a_terminal(text: str) -> None:
    shown = plain(text)
    assert shown.isprintable() or all(c.isprintable() or c == " " or ord(c) > 0x9F for c in shown)
    assert not any(ord(c) < 0x20 or 0x7F <= ord(c) <= 0x9F for c in shown)
    assert len(shown) <= 430


def test_plain_keeps_what_is_harmless_and_shows_what_is_not() -> None:
    assert plain("qemu-system-x86_64 -m 4G, VM „Zürich“ 日本") == "qemu-system-x86_64 -m 4G, VM „Zürich“ 日本"
    assert plain("\x1b]0;owned\x07\u202egnp.exe\ud800") == "\\x1b]0;owned\\x07\\u202egnp.exe\\ud800"
    assert plain("x" * 1000, longest=10) == "xxxxxxxxxx... (1000 characters)"
