"""`tracekit info TRACE`: what was recorded, when, where and how completely."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tracekit.cli.output import inert, next_command, print_json, quoted, stdout

if TYPE_CHECKING:
    from rich.table import Table

    from tracekit.trace.summary import Summary

__all__ = ["info"]

_MOST_ROWS = 12


def info(
    trace: Annotated[Path, typer.Argument(help="The trace folder.")],
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what a trace holds: where from, events by kind, losses, memslots, samples."""
    from tracekit.trace.reader import open_trace
    from tracekit.trace.summary import summarise

    summary = summarise(open_trace(trace))
    if json:
        print_json(summary.to_dict())
    else:
        _print(summary)
    next_command(f"tracekit replay {quoted(trace)} --scenario zeroing")


def _print(summary: Summary) -> None:
    console = stdout()
    if summary.source == "synthetic":
        console.print("SYNTHETIC: these events were generated, not recorded.", style="bold yellow")
    console.print(_facts(summary))
    for table in (
        _kinds(summary),
        _over_time(summary),
        _vcpus(summary),
        _memslots(summary),
        _samples(summary),
        _losses(summary),
    ):
        if table is not None:
            console.print(table)
    style = "bold green" if summary.lost == 0 else "bold red"
    console.print(_lost_line(summary), style=style, markup=False, highlight=False)


def _facts(summary: Summary) -> Table:
    from rich.table import Table
    from rich.text import Text

    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column(overflow="fold")
    for name, value in _fact_rows(summary):
        facts.add_row(name, Text(inert(value)))
    return facts


def _fact_rows(summary: Summary) -> list[tuple[str, str]]:
    host, probes = summary.host, summary.probes
    rows = [("trace", summary.path)]
    when = f"{summary.source} {summary.started or 'at an unknown time'}, {_seconds(summary.span_ns)} long"
    rows.append(("what", f"{when}, tracekit {summary.tool_version or 'unknown'}"))
    known = [str(host[key]) for key in ("hostname", "kernel", "cpu") if host.get(key)]
    known += [f"{host['cpus']} CPUs"] if host.get("cpus") else []
    known += [_bytes(host["memory_bytes"])] if host.get("memory_bytes") else []
    rows.append(("host", ", ".join(known) or "unknown"))
    rows.append(
        ("MMU mode", f"{host.get('mmu_mode', 'unknown')} ({host.get('kvm_module') or 'no KVM module'})")
    )
    for number, vm in enumerate(summary.vms[:_MOST_ROWS]):
        detail = [f"pid {vm['pid']}"] if "pid" in vm else []
        detail += [f"{vm['vcpus']} vCPUs"] if "vcpus" in vm else []
        detail += [" ".join(map(str, vm["argv"]))[:400]] if vm.get("argv") else []
        rows.append((f"vm {number}", ", ".join(detail) or "unknown"))
    if len(summary.vms) > _MOST_ROWS:
        rows.append(("", f"and {len(summary.vms) - _MOST_ROWS:,} more VMs"))
    if summary.command:
        rows.append(("command", " ".join(summary.command)[:400]))
    rows.append(
        ("addresses", f"{summary.address_kind}, times by {summary.clock.get('name', 'an unknown clock')}")
    )
    rows.append(("probes", ", ".join(map(str, probes.get("active", []))) or "none"))
    for name, hooked in probes.get("functions", {}).items():
        rows.append(("functions", f"{name}: {', '.join(hooked)}"))
    rows += [("refused", f"{name}: {why}") for name, why in probes.get("refused", {}).items()]
    rows += [("mark", f"{mark['name']} at {_since_start(summary, mark['ts_ns'])}") for mark in summary.marks]
    rows += [("note", note) for note in summary.notes]
    size = f"{summary.events:,} in {summary.parts} part{'s' * (summary.parts != 1)}, {_bytes(summary.bytes)}"
    each = "" if summary.bytes_per_event is None else f", {summary.bytes_per_event:.2f} bytes per event"
    rows.append(("events", size + each))
    return rows


def _table(title: str, *columns: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        words = name in ("kind", "metric", "known by", "reason")
        # A metric's name is what one searches for: it is never broken.
        table.add_column(
            name, justify="left" if words else "right", overflow="fold", no_wrap=name == "metric"
        )
    return table


def _add_rows(table: Table, rows: Sequence[Sequence[str]]) -> Table:
    from rich.text import Text

    for row in rows[:_MOST_ROWS]:
        table.add_row(*(Text(inert(cell)) for cell in row))
    if len(rows) > _MOST_ROWS:
        table.caption = f"{len(rows) - _MOST_ROWS:,} more rows: --json has them all"
    return table


def _kinds(summary: Summary) -> Table | None:
    rows = [
        [kind.kind, f"{kind.events:,}", _rate(kind.per_second)]
        + [_time(ns) for ns in (kind.latency_p50_ns, kind.latency_p99_ns, kind.latency_max_ns)]
        for kind in summary.kinds
    ]
    table = _table("Events and their latencies", "kind", "events", "per second", "p50", "p99", "max")
    return _add_rows(table, rows) if rows else None


def _over_time(summary: Summary) -> Table | None:
    from tracekit.report.spark import sparkline
    from tracekit.trace.summary import TIME_SLICES

    slice_s = summary.span_ns / 1e9 / TIME_SLICES
    if not summary.kinds or not slice_s:
        return None
    ascii_only = stdout().options.ascii_only
    rows = [
        (
            kind.kind,
            sparkline(kind.over_time, width=TIME_SLICES, ascii_only=ascii_only),
            _rate(max(kind.over_time) / slice_s),
        )
        for kind in summary.kinds
    ]
    table = _table(
        "Events over time", "kind", f"from start to end, {_time(round(1e9 * slice_s))} a mark", "most/s"
    )
    table.columns[1].justify, table.columns[1].no_wrap = "left", True
    return _add_rows(table, rows)


def _vcpus(summary: Summary) -> Table | None:
    from tracekit.report.spark import bar

    ascii_only = stdout().options.ascii_only
    most = max((row["events"] for row in summary.vcpus), default=0)
    rows = [
        (
            str(row["vm"]),
            "none" if row["vcpu"] is None else str(row["vcpu"]),
            f"{row['events']:,}",
            bar(row["events"], most, ascii_only=ascii_only).rstrip(),
        )
        for row in summary.vcpus
    ]
    table = _table("Events per vCPU", "vm", "vCPU", "events", "")
    table.columns[3].justify = "left"
    return _add_rows(table, rows) if rows else None


def _memslots(summary: Summary) -> Table | None:
    rows = [
        (
            f"{row['vm']}:{row['slot']}",
            f"{row['gpa']:#x}",
            _bytes(row["size_bytes"]),
            f"{row['hva']:#x}",
            _since_start(summary, row["from_ns"]),
            _since_start(summary, row["to_ns"]),
            row["known_by"],
        )
        for row in summary.memslots
    ]
    table = _table("Memslots", "vm:slot", "gpa", "size", "hva", "from", "to", "known by")
    return _add_rows(table, rows) if rows else None


def _samples(summary: Summary) -> Table | None:
    rows = []
    for row in summary.samples:
        show = _bytes if row["metric"].endswith("_bytes") else _number
        rows.append(
            (
                row["metric"],
                str(row["vm"]),
                f"{row['count']:,}",
                *(show(row[at]) for at in ("min", "max", "last")),
            )
        )
    return _add_rows(_table("Samples", "metric", "vm", "count", "min", "max", "last"), rows) if rows else None


def _losses(summary: Summary) -> Table | None:
    from tracekit.trace.loss_reasons import summed

    rows = [
        (
            "unknown" if row["lost"] is None else f"{row['lost']:,}",
            "any" if row["cpu"] is None else str(row["cpu"]),
            _since_start(summary, row["t0_ns"]),
            _since_start(summary, row["t1_ns"]),
            row["reason"],
        )
        for row in summed(summary.losses)
    ]
    return _add_rows(_table("Losses", "lost", "CPU", "from", "to", "reason"), rows) if rows else None


def _lost_line(summary: Summary) -> str:
    if summary.lost == 0:
        return "0 lost"
    if summary.lost is None:
        return "LOST: an unknown number of events; figures from this trace are lower bounds"
    share = summary.lost / (summary.lost + summary.events)
    return f"LOST: {summary.lost:,} events ({share:.2%} of all)"


def _since_start(summary: Summary, ts_ns: int | None) -> str:
    if ts_ns is None:
        return "end"
    return f"{round((ts_ns - (summary.start_ns or 0)) / 1e9, 3) + 0.0:+.3f} s"


def _bytes(size: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} TiB"


def _seconds(ns: int) -> str:
    return f"{ns / 1e9:,.3f} s"


def _number(value: float) -> str:
    return f"{value:,.6g}"


def _rate(per_second: float | None) -> str:
    return "" if per_second is None else f"{per_second:,.0f}"


def _time(ns: int | None) -> str:
    if ns is None:
        return ""
    value: Any = ns
    for unit in ("ns", "us", "ms"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:,.3f} s"
