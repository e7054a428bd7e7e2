"""`tracekit lab host`: a whole KVM host with nested paging, in QEMU."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from tracekit.cli.listing import CommandList
from tracekit.cli.output import next_command, stderr
from tracekit.cli.sizes import parse_size

__all__ = ["app"]

app = typer.Typer(
    cls=CommandList,
    help="A whole KVM host with nested paging: Debian in QEMU, with tracekit and bcc in it.",
    no_args_is_help=True,
)

Kernel = Annotated[Literal["6.12", "6.1"], typer.Option(help="The host's kernel.")]


@app.command()
def build(kernel: Kernel = "6.12") -> None:
    """Build the host's disks from Debian packages (a minute and 450 MB of downloads; cached)."""
    import time

    from tracekit.lab.host.machine import build as build_disks

    started = time.monotonic()
    for disk in build_disks(kernel, say=_say):
        _say(f"{disk}: {disk.stat().st_blocks * 512 >> 20} MiB")
    _say(f"ready after {time.monotonic() - started:.1f} s")
    next_command("tracekit lab host run -- tracekit record -- tracekit lab guest")


@app.command(context_settings={"ignore_unknown_options": True})
def run(
    command: Annotated[list[str], typer.Argument(metavar="-- COMMAND…", help="What to run, in /out.")],
    kernel: Kernel = "6.12",
    memory: Annotated[
        int, typer.Option(parser=parse_size, metavar="SIZE", help="The host's memory.", show_default="4G")
    ] = 4 << 30,
    vcpus: Annotated[int, typer.Option(min=1, max=64, help="The host's CPUs.")] = 1,
    accel: Annotated[
        Literal["auto", "tcg", "kvm"], typer.Option(help="auto: nested KVM where it works, else TCG.")
    ] = "auto",
    swap: Annotated[
        int, typer.Option(parser=parse_size, metavar="SIZE", help="Give the host a disk of SIZE to swap to.")
    ] = 0,
    swap_latency: Annotated[
        float,
        typer.Option(
            min=0, metavar="MS", help="Swap in the host's memory, each request done after MS; 0: a disk."
        ),
    ] = 0.0,
    put: Annotated[
        list[Path] | None, typer.Option(metavar="PATH", help="Copy a file or folder to /opt/tracekit/in.")
    ] = None,
    out: Annotated[
        Path, typer.Option("-o", "--out", help="Where what the command left in /out goes.")
    ] = Path(),
    silence: Annotated[
        float, typer.Option(min=1, metavar="SECONDS", help="Give up after no output for this long.")
    ] = 600.0,
) -> None:
    """Run a command on a fresh lab host, copy what it left in its folder here, and exit with its code."""
    import sys

    from tracekit.lab.host.machine import HostMachine, HostPlan

    plan = HostPlan(
        kernel=kernel,
        memory_bytes=memory,
        vcpus=vcpus,
        accel=accel,
        swap_bytes=swap,
        swap_latency_ns=round(swap_latency * 1e6),
        put=tuple(put or ()),
    )
    with HostMachine(plan, say=_say) as machine:
        _say(f"booted in {machine.boot_s:.1f} s")
        code = machine.run(command, timeout_s=silence, tee=_echo)
        for path in machine.fetch(out):
            _say(f"brought {path}")
    sys.exit(code)


def _echo(text: str) -> None:
    import sys

    sys.stdout.write(text)
    sys.stdout.flush()


def _say(text: str) -> None:
    stderr().print(f"lab host: {text}", markup=False, highlight=False)
