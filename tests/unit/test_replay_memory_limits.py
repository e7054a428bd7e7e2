"""A curve of limits from one pass is what `swap` says limit by limit."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from tests.unit.replay_kit import Tiny, costs, drop, fault
from tests.unit.test_replay_slow_model import random_trace
from tests.unit.test_replay_swap import PAGE, use
from tracekit.cli.app import app
from tracekit.errors import UsageError
from tracekit.replay.jit import compiled
from tracekit.replay.memory_limits import _uses_of, curve_of_limits, curve_rows, seen_uses
from tracekit.replay.running import Room
from tracekit.replay.scenarios import parse_scenario
from tracekit.report.study import load_result
from tracekit.trace import Meta, TraceWriter
from tracekit.trace.batch import events_batch


def one_by_one(trace: Tiny, limits: list[int]) -> list[int]:
    """Return the swap-ins of `swap` at each limit (pages)."""
    room = Room.of(trace, profile=costs(), plain=True)
    asked = []
    for limit in limits:
        scenario = parse_scenario(f"swap,limit_mib={limit * PAGE}")
        asked.append(({m.name: room.context(scenario, m) for m in scenario.mechanisms}, True))
    return [round(-figures["refaults"].saved.value) for figures in room.all_of(asked)]


def in_one_pass(trace: Tiny, limits: list[int]) -> list[int]:
    curve = curve_of_limits(Room.of(trace, plain=True).timeline, limits)
    return [row["swap_ins"] for row in curve_rows(curve, np.array(limits, np.float64))]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1 << 32))
def test_the_curve_is_what_swap_says_limit_by_limit(seed: int) -> None:
    trace = random_trace(Random(seed))
    if any(row.get("level") for row in trace.rows):
        # A fault that maps nothing is no use; `swap` makes room for it all the same.
        trace.rows[:] = [row for row in trace.rows if row["kind"] != "ept_violation" or row["level"]]
    limits = [1, 2, 3, 5, 8, 600, 4000]
    assert in_one_pass(trace, limits) == one_by_one(trace, limits)


def test_by_hand() -> None:
    # 1 2 3 1 2: with room for 2 each use of 1 and 2 again misses; with 3 none. 3 was discarded: no swap-in.
    rows = [fault(10 * k, k) for k in (1, 2, 3)] + [use(40, 1), use(50, 2), drop(60, 3), fault(70, 3)]
    assert in_one_pass(Tiny(rows), [1, 2, 3]) == [2, 2, 0]
    curve = curve_of_limits(Room.of(Tiny(rows), plain=True).timeline, [2])
    # Six uses; four of them first ones; two swap-ins.
    assert (curve.references, curve.cold, curve.miss_ratio.tolist(), curve.label) == (6, 4, [1.0], "assumed")


def test_compiled_and_plain_agree() -> None:
    timeline = Room.of(random_trace(Random(5)), plain=True).timeline
    (columns,) = list(timeline)
    (plain,) = list(seen_uses(timeline))
    there, room = np.zeros(timeline.index.pages, np.bool_), len(plain[0]) + 5000
    pages, ops = np.empty(room, np.int64), np.empty(room, np.uint8)
    filled = compiled(_uses_of)(columns, timeline.levels_known, there, pages, ops)
    assert pages[:filled].tolist() == plain[0].tolist()
    assert ops[:filled].tolist() == plain[1].tolist()


def test_the_command_draws_a_curve_that_a_report_reads(tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "a.trace", Meta(source="synthetic", start_ns=1_000)) as writer:
        ts = [1_000 * k for k in range(2, 402)]
        faults = {"kind": "ept_violation", "vcpu": 0, "level": 1, "latency_ns": 4}
        writer.append(events_batch(ts_ns=ts, gfn=[k % 200 for k in range(400)], **faults))
    out = tmp_path / "out.json"
    base = ["sweep", str(tmp_path / "a.trace"), "-s", "swap", "--vary", "limit_mib=0.25:1:4", "--curve"]
    done = CliRunner().invoke(app, [*base, "--json", "-o", str(out)], catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    # 200 pages used twice in turn: below 200 pages (0.78 MiB) each of the second uses misses.
    assert [row["swap_ins"] for row in json.loads(done.stdout)] == [200, 200, 200, 0]
    assert "no access samples" in done.stderr
    curve = load_result(out).miss_ratio
    assert curve is not None
    assert curve["miss_ratio"].to_list() == [1.0, 1.0, 1.0, 0.5]
    sampled = CliRunner().invoke(app, [*base, "--sample", "0.5", "--seed", "3"], catch_exceptions=False)
    assert "swap-ins" in sampled.stdout
    for wrong in (["--vary", "other_mib=1:2"], ["--tornado"]):
        with pytest.raises(UsageError, match=r"swap alone|questions of their own"):
            CliRunner().invoke(app, [*base, *wrong], catch_exceptions=False)
