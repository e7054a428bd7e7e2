"""Records a run with the real recorder, on memory that the machine's own host has backed before."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Final

from tracekit.errors import FailedError, UsageError
from tracekit.lab.guest_memory import HUGE_BYTES, MADV_POPULATE_WRITE, GuestMemory
from tracekit.lab.validate.case import Recording, Run
from tracekit.probes.plan import RecordPlan
from tracekit.probes.run import record

__all__ = ["kept_run", "record_run", "warm_up"]

WARM_BYTES: Final = 512 << 20
_ATTEMPTS: Final = 3
_SWAP_BYTES: Final = 1 << 30
_SILENCE_S: Final = 900.0
_KILLED: Final = 137  # as a shell gives SIGKILL


def warm_up(size_bytes: int = WARM_BYTES) -> None:
    """Touch free memory of this machine and free it again.

    Where the machine is a VM whose host backs memory lazily, a first touch takes milliseconds; that belongs
    to the host below, not to what is compared here.
    """
    with GuestMemory(size_bytes, page_bytes=HUGE_BYTES) as memory:
        memory.advise(MADV_POPULATE_WRITE)


def kept_run(folder: Path, name: str) -> Recording:
    """Return what an earlier run left as FOLDER/NAME.trace; raises `UsageError` where there is nothing."""
    path, said = folder / f"{name}.trace", folder / f"{name}.json"
    if not (path.is_dir() and said.is_file()):
        raise UsageError(f"no earlier run left {path}", hint="without --again it is run")
    return Recording(path, json.loads(said.read_text()))


def record_run(run: Run, folder: Path, name: str) -> Recording:
    """Record a run as FOLDER/NAME.trace; again, if events were lost.

    Raises `FailedError` where the run fails or events are lost every time, `CapabilityError` where this
    host can't record or lacks what is around the run.
    """
    if run.in_lab_host:
        return _record_in_lab_host(run, folder, name)
    said, talk = folder / f"{name}.json", folder / f"{name}.err"
    into = f'exec "$@" >{json.dumps(str(said))} 2>{json.dumps(str(talk))}'
    for _ in range(_ATTEMPTS):
        warm_up()
        with run.around() as more:
            words = (sys.executable, "-m", "tracekit", *run.words, *more, "--json")
            path = folder / f"{name}.trace"
            report = record(RecordPlan(out=path, command=("sh", "-c", into, "sh", *words), force=True))
        if report.exit_code:
            last = talk.read_text(errors="replace").strip().splitlines()[-2:] or ["it said nothing"]
            code = report.exit_code
            raise FailedError(
                f"tracekit {' '.join(run.words)} ended with {code}: {' '.join(last)}",
                hint="dmesg | tail   tells of a kill for want of memory" if code == _KILLED else "",
            )
        if report.lost == 0:
            return Recording(path, json.loads(said.read_text()))
    raise FailedError("the recorder lost events in every attempt", hint="an idler machine")


def _record_in_lab_host(run: Run, folder: Path, name: str) -> Recording:
    from tracekit.lab.host.machine import HostMachine, HostPlan

    command = f"cd /out && tracekit record -o {name}.trace -- sh -c 'tracekit {shlex.join(run.words)} --json"
    with HostMachine(HostPlan(swap_bytes=_SWAP_BYTES)) as machine:
        outcome = machine.qemu.execute(f"{command} >{name}.json'", timeout_s=_SILENCE_S)
        if outcome.code:
            raise FailedError(f"in the lab host: {' '.join(outcome.output.strip().splitlines()[-2:])}")
        machine.fetch(folder)
    recording = Recording(folder / f"{name}.trace", json.loads((folder / f"{name}.json").read_text()))
    if recording.trace.lost:
        raise FailedError("the recorder lost events in the lab host", hint="an idler machine")
    return recording
