"""The ledger in the terminal: 80 columns, every word of it, with and without colour, into a pipe."""

from __future__ import annotations

import io
import re

import polars as pl
import pytest
from rich.console import Console

from tests.unit.report_example import HOSTILE, ledger_row, result_rows
from tracekit.errors import UsageError
from tracekit.report.ledger import checked, entries, headline, scenarios
from tracekit.report.tables import ledger_table


def printed(rows: pl.DataFrame, *, terminal: bool = False, every: bool = False) -> str:
    out = io.StringIO()
    console = Console(
        file=out, width=80, force_terminal=terminal, color_system="truecolor" if terminal else None
    )
    console.print(ledger_table(rows, every=every))
    return out.getvalue()


def test_table_says_what_was_saved_of_what_how_sure_and_why() -> None:
    text = printed(result_rows())
    row = next(line for line in text.splitlines() if line.startswith("guest stall"))
    assert row.split() == [
        "guest",
        "stall",
        "8.00",
        "s",
        "6.00",
        "s",
        "2.00",
        "s",
        "[1.00,",
        "3.00]",
        "bounded",
    ]
    assert "= guest stall: saves 2.00 s [1.00, 3.00] of 8.00 s (25 %), bounded" in text
    assert re.search(r"peak resident +1\.00 GiB +1\.12 GiB +-128 MiB \[-256, 0\] +assumed", text)
    assert re.search(r"prefaults wasted +0 +unknown +unknown +assumed", text)
    for label in ("measured: follows", "bounded: an interval", "assumed: rests"):
        assert label in text


def test_exact_savings_show_no_interval() -> None:
    text = printed(pl.from_dicts([ledger_row("faults", "count", 1000, 250)]))
    assert re.search(r"faults +1,000 +750 +250 exact +measured", text)
    assert "[250" not in text


@pytest.mark.parametrize("terminal", [False, True])
def test_nothing_is_wider_than_80_columns_or_cut(terminal: bool) -> None:
    big = [
        ledger_row(metric, unit, most, -most, low=-most, high=most / 3, label="assumed")
        for metric, unit, most in (
            ("stall", "ns", 3.5e12),
            ("critical_path", "ns", 3.5e16),
            ("resident_peak", "bytes", 1023 << 40),
            ("faults", "count", 999_999),
            ("zeroed_twice", "bytes", 1023 << 30),
            ("refaults", "count", 999e9),
        )
    ]
    text = printed(pl.from_dicts(big, infer_schema_length=None), terminal=terminal)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    assert all(len(line) <= 80 for line in plain.splitlines())
    assert "…" not in plain
    assert "bytes zeroed twice" in plain


def test_colour_adds_nothing_that_the_words_do_not_say() -> None:
    coloured, plain = printed(result_rows(), terminal=True), printed(result_rows())
    assert "\x1b[" in coloured
    assert "\x1b" not in plain
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == plain


def test_hostile_names_are_inert() -> None:
    row = ledger_row("stall", "ns", 8e9, 2e9, scenario=HOSTILE, mechanism=HOSTILE)
    other = ledger_row("x[bold red]\x1b]0;t\x07", "count", 1, 1, scenario=HOSTILE, mechanism=HOSTILE)
    text = printed(pl.from_dicts([row, other]), terminal=True, every=True)
    assert not re.search(r"\x1b(?!\[[0-9;]*m)|\x07", text)
    assert "[31m" in text  # of the hostile string, visible because its escape character is not there any more
    assert "\\x1b" in text


def test_headline_metrics_come_first_and_the_rest_only_on_request() -> None:
    rows = pl.concat(
        [pl.from_dicts([ledger_row("stall_p99", "ns", 10.0, 1.0)]), result_rows()], how="vertical_relaxed"
    )
    assert [e.metric for e in entries(rows, "zeroing")] == ["stall", "faults", "resident_peak"]
    assert [e.metric for e in entries(rows, "zeroing", every=True)][-1] == "stall_p99"
    assert "stall p99" not in printed(rows)
    assert "stall p99" in printed(rows, every=True)


def test_total_of_a_combination_is_its_all_row_not_one_of_its_parts() -> None:
    whole = headline(result_rows(), "both")
    assert whole is not None
    assert (whole.mechanism, whole.saved, whole.low, whole.high) == ("all", 7e9, 5e9, 8e9)
    assert scenarios(result_rows()) == ["zeroing", "hot_hint,lead_ms=5", "both"]


def test_headline_is_the_first_metric_that_moves() -> None:
    still = ledger_row("stall", "ns", 8e9, 0)
    moving = ledger_row("resident_peak", "bytes", 8, 2)
    best = headline(pl.from_dicts([still, moving], infer_schema_length=None), "zeroing")
    assert best is not None
    assert best.metric == "resident_peak"
    only = headline(pl.from_dicts([still]), "zeroing")
    assert only is not None
    assert only.sentence() == "guest stall: unchanged at 8.00 s, measured"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"label": "guessed"}, "label guessed is none of"),
        ({"saved": "much"}, "not a replay result"),
        ({"label": None}, "label None"),
    ],
)
def test_what_is_no_result_is_refused(change: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        checked([ledger_row("stall", "ns", 8.0, 2.0) | change])


def test_a_result_without_a_column_is_refused() -> None:
    with pytest.raises(UsageError, match="column label is missing"):
        checked(result_rows().drop("label"))


def test_bars_show_what_is_sure_and_what_is_possible() -> None:
    bars = [line for line in printed(result_rows()).splitlines() if "█" in line or "░" in line]
    # The surest first: both saves at least 5 of 8 s, hot_hint 4 of 8, zeroing 1 of 8 and up to 3.
    assert [line.split()[0] for line in bars] == ["both", "hot_hint,lead_ms=5", "zeroing"]
    assert bars[2].split()[1] == "█" * 2 + "░" * 6
    assert "25 % of guest stall" in bars[2]
