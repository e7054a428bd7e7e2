"""The public API: open a trace, ask what would have been saved."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import polars as pl

    from tracekit.replay import Mechanism, Profile, Scenario
    from tracekit.trace import Trace

__all__ = ["open", "scan", "what_if"]


def open(path: str | Path) -> Trace:  # noqa: A001  (tk.open reads like gzip.open)
    """Open a trace folder for reading.

    The result has `.events` (a polars LazyFrame, one row per event, columns of
    `tracekit.trace.schema.EVENTS`; times in ns, `pages` in 4 KiB), `.memslots`, `.samples`, `.losses` (polars
    DataFrames), `.meta`, `.lost` (events lost; None = an unknown number) and `.span_ns`.

    Raises UsageError if there is no trace or a newer tracekit wrote it, DamagedError if it is broken.

    >>> import tracekit as tk
    >>> from tracekit.trace import Meta, TraceWriter
    >>> from tracekit.trace.batch import events_batch
    >>> folder = getfixture("tmp_path") / "x.trace"
    >>> with TraceWriter(folder, Meta(source="synthetic", start_ns=1_000, stop_ns=101_000)) as writer:
    ...     writer.append(events_batch(ts_ns=[11_000, 31_000], kind="ept_violation", vcpu=0, gfn=[0, 1],
    ...                                level=1, access=2, latency_ns=[4_000, 6_000]))
    >>> tk.open(folder).events.collect().height
    2
    """
    import tracekit.datasets.frame  # noqa: F401  registers `events.tk`, the questions people ask
    from tracekit.trace import open_trace

    return open_trace(path)


def scan(traces: str | Path | Trace | Iterable[str | Path | Trace]) -> pl.LazyFrame:
    """Return the events of many traces as one LazyFrame, with the column `trace` in front.

    `traces`: folders, patterns (`runs/*.trace`), fsspec URLs, opened traces; see
    `tracekit.datasets.frame.scan`. Raises UsageError where there is no trace.

    >>> import tracekit as tk
    >>> from tracekit.datasets.catalog import trace_path
    >>> tk.scan(trace_path("small-guest-zero-then-use")).collect_schema().names()[:2]
    ['trace', 'ts_ns']
    """
    from tracekit.datasets.frame import scan as scan_events

    return scan_events(traces)


def what_if(
    trace: Trace | str | Path,
    scenarios: str | Scenario | Iterable[str | Scenario],
    *,
    profile: str | Path | Profile | None = None,
    seed: int = 0,
    mechanisms: Sequence[Mechanism] = (),
    phases: Iterable[str] = (),
) -> pl.DataFrame:
    """Replay a trace through enlightened-memory scenarios; return one tidy row per figure.

    `scenarios`: `NAME[+NAME…][,parameter=value…]`, such as `zeroing` or `hot_hint,policy=stride,n=8`, or
    `tracekit.replay.Scenario`s. `profile`: a cost profile by name or TOML file; `mechanisms`: your own.
    `phases`: parts of the trace with rows of their own, such as `boot=0:balloon_inflate` (seconds, marks of
    the trace, or kinds of event: their first).

    Columns: scenario, mechanism (its name; `all` for a combination as a whole; `without NAME`: what that one
    adds to all the others; `none` for the baseline), metric (of a phase or a vCPU: `stall:boot`), unit,
    baseline, counterfactual, saved (= baseline - counterfactual), low and high (they bound `saved`; null = no
    bound), label (measured = follows from recorded events, bounded = an interval consistent with them,
    assumed = rests on a parameter or a cost of the profile). docs/model.md defines all.

    Raises UsageError for an unknown scenario or parameter, and what `open` raises.

    >>> import tracekit as tk
    >>> from tracekit.trace import Meta, TraceWriter
    >>> from tracekit.trace.batch import events_batch
    >>> folder = getfixture("tmp_path") / "x.trace"
    >>> with TraceWriter(folder, Meta(source="synthetic", start_ns=1_000, stop_ns=101_000)) as writer:
    ...     writer.append(events_batch(ts_ns=[11_000, 31_000], kind="ept_violation", vcpu=0, gfn=[0, 1],
    ...                                level=1, access=2, latency_ns=[4_000, 6_000]))
    >>> rows = tk.what_if(folder, "prealloc")
    >>> rows.filter(metric="stall").select("unit", "baseline", "saved", "label").row(0)
    ('ns', 10000.0, 6600.0, 'assumed')
    """
    from tracekit.replay import Scenario, run

    source = open(trace) if isinstance(trace, str | Path) else trace
    chosen = [scenarios] if isinstance(scenarios, str | Scenario) else scenarios
    return run(source, chosen, profile=profile, seed=seed, mechanisms=mechanisms, phases=phases).rows
