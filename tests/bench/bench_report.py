"""How long a report takes, by part: a trace of 5 M events boiled down, drawn and written as a page."""

from __future__ import annotations

from typing import Any

import pytest

from tracekit.datasets.synthetic import GENERATORS
from tracekit.datasets.synthetic.make import make_trace
from tracekit.report.figures import draw
from tracekit.report.outline import Outline
from tracekit.report.page import render
from tracekit.report.study import Study
from tracekit.trace import Trace, open_trace

EVENTS = 5_000_000
PARTS = ("extent", "tally", "heat")


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    path = tmp_path_factory.mktemp("bench") / "working-set.trace"
    make_trace(GENERATORS["working-set"](events=EVENTS), path)
    return open_trace(path)


@pytest.mark.parametrize("part", PARTS)
def test_outline(benchmark: Any, trace: Trace, part: str) -> None:
    def fresh() -> tuple[tuple[Outline], dict[str, Any]]:
        outline = Outline(trace)
        for before in PARTS[: PARTS.index(part)]:  # each part by itself, without what it rests on
            assert getattr(outline, before) is not None
        return (outline,), {}

    benchmark.pedantic(lambda outline: getattr(outline, part), setup=fresh, rounds=3)


def test_page(benchmark: Any, trace: Trace) -> None:
    study = Study("working-set.trace", trace=trace)
    figures = draw(study)
    benchmark.pedantic(lambda: render(study, figures), rounds=3)
