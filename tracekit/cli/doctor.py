"""`tracekit doctor`: can this host record, and if not, what mends it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from tracekit.cli.output import next_command, print_json, stdout

if TYPE_CHECKING:
    from tracekit.probes.doctor import Check

__all__ = ["doctor"]

_STYLES = {"ok": "green", "limited": "yellow", "missing": "bold red"}


def doctor(json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Check what recording needs: permission, kernel, eBPF, KVM, tracepoints."""
    from dataclasses import asdict

    from tracekit.probes.doctor import examine

    checks = examine()
    if json:
        print_json([asdict(check) for check in checks])
    else:
        _print(checks)
    broken = any(check.state == "missing" for check in checks)
    next_command("the first command above, then tracekit doctor" if broken else "tracekit record -- COMMAND…")
    raise typer.Exit(5 if broken else 0)


def _print(checks: list[Check]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("check", "state", "found"):
        table.add_column(heading, overflow="fold")
    for check in checks:
        found = check.found + (f"\n-> {check.mend}" if check.mend else "")
        table.add_row(check.name, Text(check.state, style=_STYLES[check.state]), Text(found))
    stdout().print(table)
