"""`make soak`: half an hour at 200,000 events/s. Memory flat, every trace valid, no event unaccounted for.

`python -m tests.endurance.soak [MINUTES] [EVENTS_PER_SECOND] [FOLDER]`: a line a minute, JSON at the end.
About 9 bytes an event pass over the disk; each trace is removed once it has been read whole.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import polars as pl

from tests.endurance.workload import command, emitted, start_recorder
from tracekit.trace import open_trace

EVERY_S = 60


def _rss_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) << 10
    return 0


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


class Soak:
    """What has been found so far."""

    def __init__(self) -> None:
        self.stored = self.lost = self.traces = self.bytes = self.rows = 0
        self.unknown = False
        self.rss: list[int] = []

    def take(self, path: Path, address: int) -> None:
        """Read a finished trace whole, add it up, remove it."""
        trace = open_trace(path)
        trace.verify()
        mine = (pl.col("kind") == "madvise") & pl.col("hva").is_between(
            address, address + (1 << 20), closed="left"
        )
        self.stored += trace.events.filter(mine).select(pl.len()).collect(engine="streaming").item()
        losses = trace.losses
        self.lost += int(losses.filter(pl.col("reason") == "ring_full: madvise")["lost"].sum())
        self.unknown |= losses["lost"].null_count() > 0
        self.rows += trace.rows
        self.bytes += trace.bytes
        self.traces += 1
        shutil.rmtree(path)


def _watch(soak: Soak, recorder: subprocess.Popen[str], series: Path, counter: Path) -> float:
    """Sample the recorder's memory and read each finished trace until it ends; returns its CPU seconds."""
    cpu, told = 0.0, time.monotonic()
    while recorder.poll() is None:
        time.sleep(1)
        try:
            soak.rss.append(_rss_bytes(recorder.pid))
            cpu = _cpu_seconds(recorder.pid)
        except OSError:
            break
        for path in sorted(series.parent.glob("soak-*.trace"))[:-1]:
            soak.take(path, emitted(counter)[0])
        if time.monotonic() - told >= EVERY_S:
            told += EVERY_S
            made = emitted(counter)[1]
            print(
                f"{made:,} made; {soak.stored:,} stored and {soak.lost:,} lost in {soak.traces} traces; "
                f"recorder {soak.rss[-1] >> 20} MiB, {cpu:.0f} s CPU",
                flush=True,
            )
    return cpu


def main() -> None:
    """Run it and print what came of it; exit code 1 when something is not accounted for."""
    minutes = float(sys.argv[1]) if len(sys.argv) > 1 else 30
    rate = float(sys.argv[2]) if len(sys.argv) > 2 else 200_000
    folder = Path(tempfile.mkdtemp(prefix="tracekit-soak-", dir=sys.argv[3] if len(sys.argv) > 3 else None))
    counter, series = folder / "counter", folder / "soak.trace"
    work = command(counter, int(minutes * 60 * rate), rate, minutes * 60)
    soak, start = Soak(), time.monotonic()
    try:
        recorder = start_recorder(series, "--rotate", str(EVERY_S), "--quiet", "--", *work)
        cpu = _watch(soak, recorder, series, counter)
        said = recorder.communicate()[1]
        took = time.monotonic() - start
        address, made = emitted(counter)
        for path in sorted(folder.glob("soak-*.trace")):
            soak.take(path, address)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    settled = soak.rss[len(soak.rss) // 10 :] or [0]
    half = len(settled) // 2
    figures = {
        "minutes": round(took / 60, 1),
        "made": made,
        "per_second": round(made / took),
        "stored": soak.stored,
        "lost_and_ledgered": soak.lost,
        "unaccounted": made - soak.stored - soak.lost,
        "unknown_losses": soak.unknown,
        "traces_read_whole": soak.traces,
        "rows": soak.rows,
        "bytes_per_row": round(soak.bytes / max(soak.rows, 1), 2),
        "recorder_cpu_s": cpu,
        "rss_mib_first_half": max(settled[:half] or [0]) >> 20,
        "rss_mib_second_half": max(settled[half:]) >> 20,
        "exit_code": recorder.returncode,
    }
    print(json.dumps(figures, indent=2))
    print(said.strip(), file=sys.stderr)
    if recorder.returncode or figures["unaccounted"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
