"""A process that makes a known number of events, and the account of a trace against it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from tracekit.trace import Trace

__all__ = ["EMIT", "Account", "account", "children_of", "command", "emitted", "finished", "start_recorder"]

# Calls madvise(MADV_DONTNEED) on page after page of its own, so many a second (0 = as fast as it can), until
# it has made so many or so many seconds are over. How many it has made it writes, after each, into a file
# that outlives it; the first number in it is the address.
EMIT = """
import ctypes, mmap, os, struct, sys, time
path, count, rate, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4])
with open(path, "r+b") as file:
    told = mmap.mmap(file.fileno(), 16)
pages = mmap.mmap(-1, 1 << 20)
struct.pack_into("<Q", told, 0, ctypes.addressof(ctypes.c_char.from_buffer(pages)))
advise, tell, start, done = pages.madvise, struct.Struct("<Q").pack_into, time.monotonic(), 0
while done < count and time.monotonic() - start < seconds:
    due = min(count, done + 100_000, int((time.monotonic() - start) * rate) if rate else count)
    for number in range(done, due):
        advise(4, number % 256 * 4096, 4096)
        tell(told, 8, number + 1)
    done = max(done, due)
    if rate:
        time.sleep(0.01)
"""


def command(counter: Path, count: int, rate: float = 0, seconds: float = 1e9) -> list[str]:
    """Return the command line; `counter` is made anew."""
    counter.write_bytes(bytes(16))
    return [sys.executable, "-I", "-S", "-c", EMIT, str(counter), str(count), str(rate), str(seconds)]


def emitted(counter: Path) -> tuple[int, int]:
    """Return (address, calls made) as the process left them."""
    content = counter.read_bytes()
    return int.from_bytes(content[:8], "little"), int.from_bytes(content[8:], "little")


def start_recorder(out: Path, *rest: str, **popen: object) -> subprocess.Popen[str]:
    """Start `tracekit record -o out …`."""
    arguments = [sys.executable, "-m", "tracekit", "record", "-o", str(out), *rest]
    return subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, **popen)  # type: ignore[call-overload, no-any-return]


def finished(recorder: subprocess.Popen[str], code: int = 0) -> str:
    """Wait for the recorder; it must end with this exit code and without a traceback."""
    said = recorder.communicate(timeout=300)[1]
    assert "Traceback" not in said, said
    assert recorder.returncode == code, said
    return said


def children_of(folder: Path) -> list[int]:
    """Processes whose command line names this test's own counter."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes().split(b"\0")
                if str(folder / "counter").encode() in words and b"record" not in words:
                    found.append(int(entry.name))
    return found


@dataclass(frozen=True)
class Account:
    """Calls made, found in the trace, and in its ledger (`unknown`: it says that some may be missing)."""

    emitted: int
    stored: int
    ledgered: int
    unknown: bool
    in_order: bool

    @property
    def exact(self) -> bool:
        """Every call is in the trace or counted in the ledger."""
        return self.in_order and self.emitted == self.stored + self.ledgered

    @property
    def honest(self) -> bool:
        """Nothing is missing that the trace does not tell of."""
        missing = self.emitted - self.stored - self.ledgered
        return self.in_order and missing >= 0 and (not missing or self.unknown)


def account(trace: Trace, counter: Path) -> Account:
    """Count the workload's calls in a trace; their addresses follow each other but where some are lost."""
    address, calls = emitted(counter)
    rows = (
        trace.events.filter(
            pl.col("kind") == "madvise",
            pl.col("arg") == 4,
            pl.col("hva").is_between(address, address + (1 << 20), closed="left"),
        )
        .select("hva")
        .collect()["hva"]
    )
    steps = (rows.diff().drop_nulls() if len(rows) else rows).unique().to_list()
    losses = trace.losses
    mine = losses.filter(pl.col("reason").str.contains("madvise|not written"))
    lost = int(mine["lost"].sum())
    unknown = losses["lost"].null_count() > 0
    in_order = bool(lost or unknown) or set(steps) <= {4096, 4096 - (1 << 20)}
    in_order = in_order and (not len(rows) or rows[0] == address or bool(lost or unknown))
    return Account(calls, len(rows), lost, unknown, in_order)
