"""`tracekit record`: record what the memory of a VM really did."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tracekit.cli.output import inert, next_command, print_json, quoted, stderr
from tracekit.cli.sizes import parse_size

if TYPE_CHECKING:
    from tracekit.probes.plan import RecordReport

__all__ = ["record"]


def record(
    command: Annotated[
        list[str] | None,
        typer.Argument(metavar="-- COMMAND…", help="The program to record, with its arguments."),
    ] = None,
    pid: Annotated[
        list[int] | None, typer.Option("-p", "--pid", help="Record a running VM (can be repeated).")
    ] = None,
    guest: Annotated[bool, typer.Option("--guest", help="Record this machine from inside.")] = False,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="The trace folder (default: COMMAND.trace).")
    ] = None,
    duration: Annotated[
        float | None,
        typer.Option("-d", "--duration", metavar="SECONDS", help="Stop, and end COMMAND, after so long."),
    ] = None,
    max_size: Annotated[
        int | None,
        typer.Option(
            parser=parse_size,
            metavar="SIZE",
            help="Stop, and end COMMAND, when the trace is about this large.",
        ),
    ] = None,
    rotate: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="Begin a new trace (NAME-0001.trace, …) this often."),
    ] = None,
    keep: Annotated[int, typer.Option(min=0, help="With --rotate: keep only so many traces.")] = 0,
    keep_last: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            help="Flight recorder: write only the last seconds: at the end, on SIGUSR1 (NAME-0001.trace, …).",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("-f", "--force", help="Replace the trace if it exists.")] = False,
    fail_on_loss: Annotated[
        bool, typer.Option("--fail-on-loss", help="Exit with 3 if an event was lost.")
    ] = False,
    buffer: Annotated[
        int,
        typer.Option(
            parser=parse_size,
            metavar="SIZE",
            show_default="32M",
            help="Ring between kernel and recorder (a power of 2).",
        ),
    ] = 32 << 20,
    sample: Annotated[
        float | None,
        typer.Option(metavar="RATE", help="Write only this share of the guest's memory (by a hash)."),
    ] = None,
    monitor: Annotated[
        Path | None, typer.Option(metavar="SOCKET", help="QEMU's QMP socket, to ask for memory ranges.")
    ] = None,
    as_root: Annotated[
        bool, typer.Option("--as-root", help="Under sudo: run the command as root, keep the trace root's.")
    ] = False,
    live: Annotated[
        bool | None,
        typer.Option(
            "--live/--quiet",
            help="Show rates and the newest faults (default: on a terminal, without COMMAND).",
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print how it went as JSON.")] = False,
) -> None:
    """Record a VM: start it (-- COMMAND…), attach to it (-p PID), or be in it (--guest).

    Ctrl-C or its end finishes the trace; a second Ctrl-C leaves it for `tracekit recover`. Where recording
    fails (a full disk), COMMAND goes on.
    """
    from tracekit.cli.live import LiveView
    from tracekit.probes.owner import invoking_user
    from tracekit.probes.plan import RecordPlan
    from tracekit.probes.run import record as run

    user, group = (None, None) if as_root else invoking_user()
    name = "guest" if guest else f"pid-{pid[0]}" if pid else Path(command[0]).name if command else "record"
    plan = RecordPlan(
        out=out or Path(f"{name}.trace"),
        command=tuple(command or ()),
        pids=tuple(pid or ()),
        guest=guest,
        seconds=duration,
        force=force,
        ring_bytes=buffer,
        max_bytes=max_size,
        rotate_seconds=rotate,
        rotate_keep=keep,
        keep_last_seconds=keep_last,
        user=user,
        group=group,
        monitor=monitor,
        sample=sample,
        least_privilege=True,
    )
    console = stderr()
    show = (console.is_terminal and not command) if live is None else live

    def say(text: str) -> None:
        console.print(f"tracekit: {inert(text)}", markup=False, highlight=False, soft_wrap=True)

    with LiveView(console, shown=show) as view:
        report = run(plan, view.update, say)
    if json:
        print_json(report.to_json())
    _tell(report)
    if fail_on_loss and report.lost != 0:
        from tracekit.errors import EventsLostError

        raise EventsLostError(
            f"events were lost: {report.path}", hint="a larger --buffer, or fewer VMs at once"
        )
    raise typer.Exit(report.exit_code)


def _tell(report: RecordReport) -> None:
    console = stderr()
    for line in report.lines():
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    next_command(f"tracekit info {quoted(report.path)}")
