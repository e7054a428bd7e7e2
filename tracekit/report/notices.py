"""What a reader must know before any figure: losses, synthetic data, an unfinished trace, how it was made."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

import polars as pl

from tracekit.report.ledger import scenarios, title
from tracekit.report.study import Study
from tracekit.report.text import plain
from tracekit.report.units import human

__all__ = ["assumptions", "losses", "notices", "provenance", "subject"]

_MOST_LOSSES: Final = 20
_BOOKKEEPING: Final = ("tables", "finalised", "recovered")


def subject(study: Study) -> list[str]:
    """Return what the report is about in a few short parts: host, duration, number of events."""
    trace, outline = study.trace, study.outline
    if trace is None or outline is None:
        return [f"{len(scenarios(study.rows))} scenarios" if study.rows is not None else "no trace beside it"]
    host = trace.meta.host
    parts = [
        plain(" ".join(part for part in (str(host.get("cpu") or ""), _kernel(host)) if part), longest=100)
    ]
    if outline.extent is not None:
        parts.append(f"{human(outline.extent.stop_ns - outline.extent.start_ns, 'ns')} long")
    parts.append(f"{int(outline.classes['events'].sum()):,} events")
    return [part for part in parts if part]


def _kernel(host: Mapping[str, Any]) -> str:
    return f"Linux {host['kernel']}" if host.get("kernel") else ""


def notices(study: Study) -> list[dict[str, str]]:
    """Return the banners: grade (alarm or warning), what, then."""
    trace = study.trace
    found: list[dict[str, str]] = []
    if study.provenance.get("forced"):
        found.append(_notice("alarm", "Forced.", plain(study.provenance["forced"])))
    if trace is None:
        return found
    if trace.lost is None:
        found.append(_notice("alarm", "Events were lost, how many is unknown.", "Counts are lower bounds."))
    elif trace.lost:
        events = max(1, int(study.outline.classes["events"].sum()) if study.outline else 1)
        share = trace.lost / (trace.lost + events)
        found.append(
            _notice(
                "alarm",
                f"{trace.lost:,} events were lost ({share:.2%}).",
                "Counts and sums from recorded events are lower bounds; the loss ledger below says where.",
            )
        )
    if trace.meta.source == "synthetic":
        found.append(
            _notice("warning", "Synthetic trace.", "Made by a generator: it shows the model, not a real VM.")
        )
    if trace.meta.source == "imported":
        found.append(
            _notice(
                "warning",
                "Imported trace.",
                "Recorded by another tool; losses only as far as that tool says.",
            )
        )
    if trace.meta.recovered:
        found.append(
            _notice(
                "warning",
                "Recovered trace.",
                "Recording did not end cleanly: what came last may be missing.",
            )
        )
    return found


def _notice(grade: str, what: str, then: str) -> dict[str, str]:
    return {"grade": grade, "what": what, "then": then}


def assumptions(study: Study) -> list[str]:
    """Return, in sentences, what the figures rest on."""
    lines = []
    if study.rows is not None:
        for scenario in scenarios(study.rows):
            assumed = study.rows.filter((pl.col("scenario") == scenario) & (pl.col("label") == "assumed"))
            if assumed.height:
                names = ", ".join(title(metric) for metric in assumed["metric"].unique(maintain_order=True))
                lines.append(f"{plain(scenario)}: assumed, from the scenario's parameters: {plain(names)}.")
        lines.append("Intervals hold what is consistent with the trace; they are not sampling error alone.")
    if study.trace is not None:
        lines.append(
            "Touches of pages that are already mapped leave no event: more may be in use than was seen."
        )
        if (mode := study.trace.meta.host.get("mmu_mode")) == "tcg":
            lines.append(
                "The guest ran under emulation (TCG): counts and memory are real, times are not a hardware's."
            )
        elif mode == "none":
            lines.append(
                "No MMU faults of a VM were recorded; faults of the VMM's threads stand for the guest's."
            )
    return lines


def provenance(study: Study) -> list[tuple[str, str]]:
    """Return how the figures were made, as words: the result's own record, then the trace's."""
    facts: dict[str, Any] = {f"replay {key}": value for key, value in study.provenance.items()}
    if study.trace is not None:
        record = json.loads(study.trace.meta.to_json())
        facts |= {"trace": str(study.trace.path)} | {k: v for k, v in record.items() if k not in _BOOKKEEPING}
    return list(_lines(facts))


def _lines(facts: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Flatten nested facts into lines a person can read; empty ones are left out."""
    for key, value in facts.items():
        name = plain(f"{prefix}{key}".replace("_", " "))
        if value in (None, "", [], {}):
            continue
        if isinstance(value, dict):
            yield from _lines(value, f"{prefix}{key} ")
        elif isinstance(value, list) and all(isinstance(item, dict) for item in value):
            for number, item in enumerate(value):
                yield from _lines(item, f"{prefix}{key} {number} " if len(value) > 1 else f"{prefix}{key} ")
        elif isinstance(value, list):
            yield name, plain(" ".join(str(item) for item in value), longest=1200)
        else:
            yield name, plain(value, longest=1200)


def losses(study: Study) -> list[dict[str, str]]:
    """Return the first rows of the loss ledger, in words."""
    if study.trace is None or not study.trace.losses.height:
        return []
    outline = study.outline
    start = outline.extent.start_ns if outline and outline.extent else 0
    return [
        {
            "reason": plain(row["reason"]),
            "start": human(row["t0_ns"] - start, "ns"),
            "stop": human(row["t1_ns"] - start, "ns"),
            "cpu": "any" if row["cpu"] is None else str(row["cpu"]),
            "lost": "unknown" if row["lost"] is None else f"{row['lost']:,}",
        }
        for row in study.trace.losses.sort("t0_ns").head(_MOST_LOSSES).iter_rows(named=True)
    ]
