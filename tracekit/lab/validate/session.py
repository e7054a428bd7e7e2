"""One recording over several runs, one after another, that is cut into a trace for each of them.

Compiling the recorder's programs takes longer than a small guest runs (in an emulated lab host a minute), and
runs that are compared with each other should be close in time.
"""

from __future__ import annotations

import contextlib
import copy
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import numpy as np
import polars as pl
import pyarrow as pa

from tracekit.errors import FailedError, TracekitError
from tracekit.lab.validate.case import Run
from tracekit.probes.plan import RecordPlan
from tracekit.probes.run import record
from tracekit.trace import Trace, TraceWriter, open_trace
from tracekit.trace.schema import EVENTS

__all__ = ["Session", "cut", "run_unrecorded"]

_LOOK_S: Final = 0.02
_KILLED: Final = 137  # as a shell gives SIGKILL


class Session:
    """A recording that goes on while `run` runs one command after another; `close` ends it.

    The recorder runs beside, in a thread, and its command is a shell that reads what to run from a pipe: so
    that what is around a run is entered and left here, where signals come. Raises `CapabilityError` where
    this host can't record.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._work = Path(tempfile.mkdtemp(prefix="tracekit-session-"))
        os.mkfifo(self._work / "orders")
        # Open for both ends: opening never waits, and the shell sees no end before `close`.
        self._orders = os.open(self._work / "orders", os.O_RDWR)
        self._spans: dict[str, tuple[int, int]] = {}
        self._error: BaseException | None = None
        self._recorder = threading.Thread(target=self._record, name="recorder")
        self._recorder.start()

    def run(self, run: Run, name: str) -> None:
        """Run and leave what it said as FOLDER/NAME.json; raises `FailedError` where it fails."""
        said, talk = _said(self._folder, name)
        code, pid = self._work / "code", self._work / "pid"
        with run.around() as more:
            words = shlex.join(_command(run, more))
            into = f">{shlex.quote(str(said))} 2>{shlex.quote(str(talk))} </dev/null"
            wait = f"echo $! >{pid}; wait $!; echo $? >{code}.new; mv {code}.new {code}"
            self._wait_for(self._work / "ready", "echo >{path}.new; mv {path}.new {path}")
            started = time.monotonic_ns()
            try:
                self._wait_for(code, f"{words} {into} & {wait}")
            except BaseException:
                with contextlib.suppress(OSError, ValueError):
                    os.kill(int(pid.read_text()), signal.SIGTERM)
                raise
            self._spans[name] = started, time.monotonic_ns()
        ended = int(code.read_text())
        code.unlink()
        if ended:
            del self._spans[name]
            raise _failure(run, ended, talk)

    def close(self) -> dict[str, Trace]:
        """End the recording and return the trace of each run that ended well, FOLDER/NAME.trace."""
        self._order("exit 0")
        self._recorder.join()
        os.close(self._orders)
        found = {}
        if self._error is None:
            whole = open_trace(self._whole)
            found = {
                name: cut(whole, self._folder / f"{name}.trace", *span) for name, span in self._spans.items()
            }
        shutil.rmtree(self._work)
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        failure: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._work.exists():
            self.close()

    @property
    def _whole(self) -> Path:
        return self._work / "whole.trace"

    def _record(self) -> None:
        try:
            record(RecordPlan(out=self._whole, command=("sh", str(self._work / "orders"))))
        except BaseException as error:
            self._error = error

    def _order(self, line: str) -> None:
        os.write(self._orders, f"{line}\n".encode())

    def _wait_for(self, path: Path, order: str) -> None:
        self._order(order.format(path=path))
        while not path.exists():
            if not self._recorder.is_alive():
                if isinstance(self._error, TracekitError):
                    raise self._error
                raise FailedError(f"the recording ended before its runs: {self._error}")
            time.sleep(_LOOK_S)


def run_unrecorded(run: Run, name: str, folder: Path) -> None:
    """Run as a session would, with no recorder beside it; raises `FailedError` where it fails."""
    said, talk = _said(folder, name)
    with run.around() as more, said.open("w") as out, talk.open("w") as err:
        ran = subprocess.Popen(_command(run, more), stdin=subprocess.DEVNULL, stdout=out, stderr=err)
        try:
            ended = ran.wait()
        except BaseException:
            ran.terminate()
            ran.wait()
            raise
    if ended:
        raise _failure(run, ended if ended > 0 else 128 - ended, talk)


def _said(folder: Path, name: str) -> tuple[Path, Path]:
    return folder / f"{name}.json", folder / f"{name}.err"


def _command(run: Run, more: tuple[str, ...]) -> tuple[str, ...]:
    return (sys.executable, "-m", "tracekit", *run.words, *more, "--json")


def _failure(run: Run, ended: int, talk: Path) -> FailedError:
    last = talk.read_text(errors="replace").strip().splitlines()[-2:] or ["it said nothing"]
    return FailedError(
        f"tracekit {' '.join(run.words)} ended with {ended}: {' '.join(last)}",
        hint="dmesg | tail   tells of a kill for want of memory" if ended == _KILLED else "",
    )


def cut(whole: Trace, path: Path, start_ns: int, stop_ns: int) -> Trace:
    """Write what a trace holds of a span of time as a trace of its own.

    Its VMs are counted from 0 again; processes without guest memory (shells) are left out.
    """
    slots = whole.memslots.filter(
        (pl.col("from_ns") <= stop_ns) & (pl.col("to_ns").is_null() | (pl.col("to_ns") >= start_ns))
    )
    rows = []
    for batch in whole.batches():
        ts_ns, vm = batch.column("ts_ns").to_numpy(), batch.column("vm").to_numpy()
        here = (ts_ns >= start_ns) & (ts_ns <= stop_ns) & np.isin(vm, slots["vm"].to_numpy())
        rows.append(batch.filter(pa.array(here)))
    numbers = np.unique(np.concatenate([batch.column("vm").to_numpy() for batch in rows])).tolist()
    new = {vm: n for n, vm in enumerate(numbers)}
    vms = [whole.meta.vms[vm] for vm in numbers]
    meta = replace(copy.deepcopy(whole.meta), vms=vms, start_ns=start_ns, stop_ns=stop_ns)
    with TraceWriter(path, meta, force=True) as writer:
        for batch in rows:
            vm = np.searchsorted(numbers, batch.column("vm").to_numpy()).astype(np.uint16)
            at = EVENTS.get_field_index("vm")
            writer.append(batch.set_column(at, EVENTS.field(at), pa.array(vm)))
        for row in slots.iter_rows(named=True):
            if row["vm"] in new:
                writer.add_memslot(**{**row, "vm": new[row["vm"]]})
        for row in whole.samples.iter_rows(named=True):
            if row["vm"] in new and start_ns <= row["ts_ns"] <= stop_ns:
                writer.add_sample(**{**row, "vm": new[row["vm"]]})
        for row in whole.losses.iter_rows(named=True):
            if row["t0_ns"] <= stop_ns and row["t1_ns"] >= start_ns:
                writer.add_loss(**row)
    return open_trace(path)
