"""What a reader must know before any figure: losses, synthetic data, an unfinished trace, how it was made."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

from tracekit.report.ledger import entries, scenarios, title
from tracekit.report.study import Study
from tracekit.report.text import plain
from tracekit.report.units import human
from tracekit.trace.loss_reasons import summed

__all__ = ["assumptions", "costs", "losses", "notices", "provenance", "subject"]

_SAID_ELSEWHERE: Final = ("notes", "forced", "scenarios", "profile")
_BOOKKEEPING: Final = ("tables", "finalised", "recovered", "schema_version")


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
    parts.append(f"{outline.extent.events if outline.extent else 0:,} events")
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
        extent = study.outline.extent if study.outline else None
        events = extent.events if extent else 0
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
    lines = [f"{plain(note)}." for note in study.provenance.get("notes") or [] if isinstance(note, str)]
    if study.rows is not None:
        for scenario in scenarios(study.rows):
            names = [title(e.metric) for e in entries(study.rows, scenario) if e.label == "assumed"]
            if names:
                lines.append(f"{plain(scenario)}, from its parameters: {plain(', '.join(names))}.")
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
    about = {key: value for key, value in study.provenance.items() if key not in _SAID_ELSEWHERE}
    facts = list(_lines(about, "replay: "))
    for scenario in _dicts(study.provenance.get("scenarios")):
        facts.append((f"scenario {plain(scenario.get('name'))}", _parameters(scenario.get("params"))))
    if isinstance(profile := study.provenance.get("profile"), dict):
        facts += _lines({key: value for key, value in profile.items() if key != "costs_ns"}, "cost profile: ")
    if study.trace is not None:
        record = json.loads(study.trace.meta.to_json())
        facts.append(("trace", plain(study.trace.path)))
        facts += _lines({key: value for key, value in record.items() if key not in _BOOKKEEPING}, "")
    return facts


def _dicts(value: object) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _parameters(params: object) -> str:
    """Write a scenario's mechanisms with all their parameters, defaults included."""
    if not isinstance(params, dict):
        return ""
    said = []
    for mechanism, values in params.items():
        pairs = values.items() if isinstance(values, dict) else ()
        said.append(", ".join([str(mechanism), *(f"{name}={_scalar(name, value)}" for name, value in pairs)]))
    return plain(" + ".join(said), longest=1200)


def _lines(facts: dict[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    """Flatten nested facts into lines a person can read; empty ones are left out."""
    for key, value in facts.items():
        name = plain(f"{prefix}{key}".replace("_", " "))
        if value in (None, "", [], {}):
            continue
        if isinstance(value, dict) and all(_is_scalar(item) for item in value.values()):
            yield name, plain(", ".join(f"{k} {_scalar(k, v)}" for k, v in value.items()), longest=1200)
        elif isinstance(value, dict):
            yield from _lines(value, f"{prefix}{key} ")
        elif isinstance(value, list) and all(isinstance(item, dict) for item in value):
            for number, item in enumerate(value):
                yield from _lines(item, f"{prefix}{key} {number} " if len(value) > 1 else f"{prefix}{key} ")
        elif isinstance(value, list):
            yield name, plain(" ".join(str(item) for item in value), longest=1200)
        else:
            yield name, plain(_scalar(key, value), longest=1200)


def _is_scalar(value: object) -> bool:
    return value is None or isinstance(value, str | int | float)


def _scalar(name: object, value: Any) -> str:
    """Write one value; names that end in their unit (memory_bytes, span_ns) tell how."""
    unit = str(name).rpartition("_")[2]
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "none" if value is None else str(value)
    if unit == "bytes" or str(name) == "span_ns":
        return human(value, unit)
    return f"{value:g}" if isinstance(value, float) else str(value)


def costs(study: Study) -> list[dict[str, str]]:
    """Return the cost profile of the replay, in words."""
    profile = study.provenance.get("profile")
    table = profile.get("costs_ns") if isinstance(profile, dict) else None
    rows = table.items() if isinstance(table, dict) else ()
    return [
        {"name": plain(str(name).replace("_", " "))}
        | {
            column: human(float(ns), "ns")
            for column, ns in zip(("typical", "low", "high"), ends, strict=True)
        }
        for name, ends in rows
        if isinstance(ends, list) and len(ends) == 3 and all(isinstance(end, int | float) for end in ends)
    ]


def losses(study: Study) -> list[dict[str, str]]:
    """Return the loss ledger in words, a row for each reason and CPU."""
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
        for row in summed(study.trace.losses.sort("t0_ns").iter_rows(named=True))
    ]
