"""How fast datasets are made, read in and asked: 2 M events each (never part of make test)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tracekit.datasets.exporters import export_trace
from tracekit.datasets.frame import EventsNamespace
from tracekit.datasets.importers import import_trace
from tracekit.datasets.synthetic import GENERATORS
from tracekit.datasets.synthetic.make import make_trace
from tracekit.datasets.synthetic.truth import Truth
from tracekit.trace import Trace, open_trace

EVENTS = 2_000_000
LINES = 300_000  # of real recordings, over and over
FILES = Path(__file__).parents[1] / "unit" / "import_files"
TEXTS = (
    ("perf-pid-ns.txt", "perf"),
    ("trace-cmd-shadow.txt", "trace-cmd"),
    ("ftrace-shadow.txt", "ftrace"),
    ("damo-raw.txt", "damo-raw"),
)


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    path = tmp_path_factory.mktemp("bench") / "boot.trace"
    make_trace(GENERATORS["boot-linux"](events=EVENTS), path)
    return open_trace(path)


@pytest.mark.parametrize("name", GENERATORS)
def test_generate(benchmark: Any, name: str) -> None:
    benchmark.pedantic(
        lambda: sum(b["ts_ns"].size for b in GENERATORS[name](events=EVENTS).blocks(Truth())), rounds=3
    )


@pytest.mark.parametrize(("name", "kind"), TEXTS)
def test_import_text(benchmark: Any, tmp_path: Path, name: str, kind: str) -> None:
    lines = (FILES / name).read_text()
    text = tmp_path / "big.txt"
    text.write_text(lines * (LINES // lines.count("\n")))
    benchmark.pedantic(
        lambda: import_trace(text, tmp_path / "x.trace", format=kind, force=True), rounds=3, warmup_rounds=1
    )


@pytest.mark.parametrize("suffix", ["parquet", "csv", "ndjson", "arrows", "pftrace"])
def test_export(benchmark: Any, trace: Trace, tmp_path: Path, suffix: str) -> None:
    benchmark.pedantic(lambda: export_trace(trace.path, tmp_path / f"x.{suffix}", force=True), rounds=3)


def test_group_by(benchmark: Any, trace: Trace) -> None:
    asked = trace.events.group_by("vcpu", "kind").agg(pl.col("latency_ns").sum(), pl.len())
    benchmark.pedantic(lambda: asked.collect(engine="streaming"), rounds=5)


@pytest.mark.parametrize("question", ["first_touches", "faults_per_second", "resident_curve", "heatmap"])
def test_question(benchmark: Any, trace: Trace, question: str) -> None:
    asked = getattr(EventsNamespace(trace.events), question)()
    benchmark.pedantic(lambda: asked.collect(engine="streaming"), rounds=3)
