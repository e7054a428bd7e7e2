"""Recording inside the test's own process: the same as `tracekit record`, without starting Python anew."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import polars as pl

from tracekit.probes.plan import RecordPlan, RecordReport
from tracekit.probes.run import record
from tracekit.trace import Trace, open_trace

TRACEKIT = (sys.executable, "-m", "tracekit")
GUEST = (*TRACEKIT, "lab", "guest", "--json")


def record_command(path: Path, *command: str, **plan: Any) -> tuple[Trace, RecordReport]:
    """Record a command that must succeed; returns its trace, of which nothing must be lost.

    Who else swaps on this machine can leave pages of which it can't be told whose they were.
    """
    report = record(RecordPlan(out=path, command=command, **plan))
    assert report.exit_code == 0
    assert [reason for reason in report.losses if not reason.startswith("swap_out_unplaced")] == []
    return open_trace(path), report


def writing_to(path: Path, *command: str) -> tuple[str, ...]:
    """The command with its stdout in a file."""
    return ("sh", "-c", f'exec "$@" > {path}', "sh", *command)


def of_kind(trace: Trace, kind: str) -> pl.DataFrame:
    return trace.events.filter(pl.col("kind") == kind).collect()


@contextmanager
def ended(process: subprocess.Popen[Any]) -> Iterator[subprocess.Popen[Any]]:
    """A process that does not outlive the block, however that ends."""
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


@contextmanager
def waiting_guest(*options: str) -> Iterator[subprocess.Popen[str]]:
    """A small guest of 4,099 pages that is built and starts on a line on its stdin."""
    command = [*GUEST, "--pages", "4099", *options, "--wait"]
    pipe = subprocess.PIPE
    with ended(subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)) as guest:
        assert guest.stderr is not None
        assert "ready" in guest.stderr.readline()
        yield guest


def wait_for(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while True:
        with suppress(FileNotFoundError):
            if condition():
                return
        assert time.monotonic() < deadline
        time.sleep(0.02)


def run_alone(module: str) -> None:
    """Run a module of tests as a program: its process has had no VM, and ends with those that it makes."""
    done = subprocess.run([sys.executable, "-m", module], stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 0, done.stderr
