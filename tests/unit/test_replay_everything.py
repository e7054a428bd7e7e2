"""A replay without a scenario: every mechanism that the trace can answer for, in one table."""

from __future__ import annotations

from pathlib import Path

import polars as pl
from rich.console import Console
from typer.testing import CliRunner

from tests.unit.replay_kit import Tiny, drop, fault, free
from tracekit.cli.app import app
from tracekit.datasets.catalog import trace_path
from tracekit.replay.everything import every_scenario
from tracekit.replay.mechanisms import known_mechanisms
from tracekit.replay.running import Room
from tracekit.report.tables import brief_table


def test_every_mechanism_runs_or_says_why_not() -> None:
    rows = [fault(100 * k, k, 4, vcpu=k % 2) for k in range(1, 9)] + [drop(500, 1)]
    room = Room.of(Tiny(rows, memory_pages=512, span_us=1_000), plain=True)
    chosen, left_out = every_scenario(room)
    names = [scenario.name for scenario in chosen]
    assert len(left_out) + len(chosen) - 1 == len(known_mechanisms())
    # Host only: reporting needs to know what is free; other policies than the default step in.
    assert left_out == [
        "free_page_reporting left out: free_page_reporting needs the guest's page_free events, and this trace"
        " has none"
    ]
    assert {"balloon,policy=recorded", "cold_hint,policy=oracle", "ksm,policy=zero", "epf,runnable=1"} <= {
        *names
    }
    assert "swap,limit_mib=1" in names  # half of 2 MiB
    assert names[-1] == "combined,epf.runnable=1"
    with_guest = Room.of(Tiny([*rows, free(50, 1)], memory_pages=512), plain=True)
    assert "free_page_reporting" in [scenario.name for scenario in every_scenario(with_guest)[0]]


def test_one_table_holds_them_all_with_intervals() -> None:
    rows = [fault(100 * k, k, 4) for k in range(1, 9)]
    room = Room.of(Tiny(rows, memory_pages=512, span_us=1_000), plain=True)
    chosen, _ = every_scenario(room)
    result = room.result(chosen, steps=False)
    assert set(result.rows["mechanism"]) <= {*known_mechanisms(), "all"}
    console = Console(width=80, color_system=None, record=True)
    console.print(brief_table(result.rows))
    said = console.export_text().splitlines()
    assert max(map(len, said)) <= 80
    assert next(line for line in said if line.startswith("zeroing ")).count("[") == 2
    assert result.rows.filter(pl.col("scenario") == chosen[-1].name, pl.col("metric") == "stall").height == 1


def test_the_table_in_the_docs_is_what_the_command_prints() -> None:
    trace = str(trace_path("linux-balloon-reporting"))
    said = CliRunner().invoke(app, ["replay", trace], catch_exceptions=False).stdout
    docs = (Path(__file__).parents[2] / "docs" / "model.md").read_text()
    table = [line.strip() for line in said.splitlines() if line.strip()]
    assert len(table) > 10
    assert [line for line in table if line not in docs] == []
