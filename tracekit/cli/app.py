"""Registers every command and prints every error, each in this one place.

Command modules import the library inside their function: `tracekit --help` must not pay for polars,
numba or scipy.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Annotated

import typer

from tracekit.cli import datasets, lab
from tracekit.cli.calibrate import calibrate
from tracekit.cli.compact import compact
from tracekit.cli.compare import compare
from tracekit.cli.demo import demo
from tracekit.cli.density import density
from tracekit.cli.doctor import doctor
from tracekit.cli.export import export
from tracekit.cli.fleet import fleet
from tracekit.cli.import_ import import_
from tracekit.cli.info import info
from tracekit.cli.listing import CommandList
from tracekit.cli.mark import mark
from tracekit.cli.merge import merge
from tracekit.cli.output import inert, stderr
from tracekit.cli.record import record
from tracekit.cli.recover import recover
from tracekit.cli.replay import replay
from tracekit.cli.report import report
from tracekit.cli.sweep import sweep
from tracekit.errors import FailedError, TracekitError

__all__ = ["app", "main"]

app = typer.Typer(
    cls=CommandList,
    name="tracekit",
    help="Record what a VM's memory really did, then replay it through an enlightened-memory model.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # boxes around the help would cost 0.2 s of imports
    context_settings={"help_option_names": ["-h", "--help"]},
)


app.command()(demo)
app.command()(record)
app.command()(mark)
app.command()(info)
app.command()(recover)
app.command()(replay)
app.command()(sweep)
app.command()(compact)
app.command()(merge)
app.command("import")(import_)
app.command()(export)
app.command()(report)
app.command()(compare)
app.command()(fleet)
app.command()(density)
app.command()(doctor)
app.command()(calibrate)
app.add_typer(lab.app, name="lab")
app.add_typer(datasets.app, name="datasets")


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"tracekit {version('tracekit')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Record what a VM's memory really did, then replay it through an enlightened-memory model."""


def main() -> None:
    """Run one command line and exit with its code (see `tracekit.errors` for the codes)."""
    _open_standard_files()
    if sys.argv[1:2] == ["record"]:  # it takes SIGUSR1 later; until then that is not to end it
        signal.signal(signal.SIGUSR1, lambda *_: None)
    # A command that is asked to end puts back what it changed (swap devices, cgroups, KSM's settings).
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:  # nohup has it ignored
        signal.signal(signal.SIGHUP, lambda number, _: sys.exit(128 + number))
    try:
        app()
    except TracekitError as error:
        _tell(error)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # The reader of our stdout went away (`| head`): not an error of ours.
        sys.stderr.close()
        sys.exit(0)
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        # A file system can refuse anything at any time: a folder we may not look into, a file that went away.
        where = f": {error.filename}" if error.filename else ""
        hint = "ls -ld of that path" if where else ""
        failed = FailedError(f"{error.strerror or error}{where}", hint=hint)
        _tell(failed)
        sys.exit(failed.exit_code)
    except MemoryError:
        _tell(FailedError("out of memory", hint="free some, or a smaller trace"))
        sys.exit(1)


def _open_standard_files() -> None:
    """Have /dev/null for a closed stdin, stdout or stderr: no file of ours is to take its place."""
    for descriptor, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(descriptor)
        except OSError:
            if (opened := os.open(os.devnull, os.O_RDWR)) != descriptor:  # the lowest that is free
                os.dup2(opened, descriptor)
                os.close(opened)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(descriptor, mode))


def _tell(error: TracekitError) -> None:
    console = stderr()
    # A message may quote a path or a line of a stranger's file: a terminal must only show it.
    message = "\n".join(map(inert, error.message.split("\n")))
    console.print(f"tracekit: {message}", style="bold red", markup=False, highlight=False)
    if error.hint:
        console.print(f"  try: {inert(error.hint)}", markup=False, highlight=False)
