"""A lab host with nested paging, as the tests here use it: commands in it, recordings out of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl

from tracekit.lab.host.machine import HostMachine
from tracekit.trace import Trace, open_trace


class Lab:
    """A lab host and the folder its results are brought to."""

    def __init__(self, machine: HostMachine, kernel: str, folder: Path) -> None:
        self.machine = machine
        self.kernel = kernel
        self.folder = folder

    def shell(self, script: str) -> str:
        outcome = self.machine.qemu.execute(script, timeout_s=600)
        assert outcome.code == 0, outcome.output[-2000:]
        return outcome.output

    def script(self, name: str, text: str) -> str:
        """Put a Python program into the host; returns the command that runs it."""
        self.shell(f"cat >/tmp/{name}.py <<'END OF PROGRAM'\n{text}\nEND OF PROGRAM")
        return f"python3 /tmp/{name}.py"

    def record(self, name: str, command: str, *options: str) -> tuple[Trace, dict[str, Any]]:
        """Record a command that prints JSON; returns the trace and what it printed. Nothing is lost.

        This host is slow: a swap-out may come too late after its unmapping to be taken for the same page.
        """
        recorded = f"sh -c '{command} >/out/{name}.json'"
        self.shell(f"cd /out && tracekit record -o {name}.trace {' '.join(options)} -- {recorded}")
        self.machine.fetch(self.folder)
        trace = open_trace(self.folder / f"{name}.trace")
        lost = trace.losses.filter(~pl.col("reason").str.starts_with("swap_out_unplaced"))
        assert lost.height == 0, lost
        assert trace.meta.finalised
        assert trace.meta.host["mmu_mode"] == "npt"
        return trace, json.loads((self.folder / f"{name}.json").read_text())

    def counters(self, *names: str) -> list[int]:
        """Read counters of /proc/vmstat."""
        values = dict(line.split() for line in self.shell("cat /proc/vmstat").splitlines() if " " in line)
        return [int(values[name]) for name in names]


def events(trace: Trace, kind: str) -> pl.DataFrame:
    return trace.events.filter(pl.col("kind") == kind).collect()


def counts(trace: Trace) -> dict[str, int]:
    rows = trace.events.group_by("kind").len().collect()
    return dict(zip(rows["kind"].cast(str), rows["len"], strict=True))
