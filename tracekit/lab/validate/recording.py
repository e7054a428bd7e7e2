"""The recordings of cases: made here, in a lab host, or kept from an earlier call."""

from __future__ import annotations

import glob
import json
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from tracekit.errors import FailedError, UsageError
from tracekit.lab.validate.case import Account, Case, Recording, Run, Runs
from tracekit.lab.validate.session import Session, run_unrecorded
from tracekit.trace import Trace
from tracekit.trace.loss_reasons import SWAP_OUT_UNPLACED

__all__ = ["is_lab_host", "kept_runs", "record_in_lab_host", "record_runs", "stem_of", "was_kept"]

_ATTEMPTS: Final = 3
_SWAP_BYTES: Final = 1 << 30
_SWAP_LATENCY_NS: Final = 3_000_000
"""Of a device for an emulated host: most of a wait must keep no CPU busy, or there is nothing to overlap."""
_SILENCE_S: Final = 1800.0


def stem_of(case: Case, seed: int) -> str:
    """Return what the names of a case's recordings begin with; readings of the same runs have the same."""
    return "-".join([case.mechanism, *(case.runs_of or case.name).replace(",", "").split(), str(seed)])


def record_runs(
    cases: Mapping[str, Case], folder: Path, baselines: int, *, say: Callable[[str], None]
) -> None:
    """Record what cases need, by the names of their recordings, in one session; again where events were lost.

    Each baseline is recorded so many times, with the real run in their middle: close in time, and a drift
    cancels. Of a case whose runs tell all themselves the baseline is recorded once, and these run afterwards,
    unrecorded. What was recorded before something failed is kept. Raises `FailedError` where a run fails or
    events are lost every time, `CapabilityError` where this host can't record or lacks what is around a run.
    """
    left = dict(cases)
    for _ in range(_ATTEMPTS):
        with Session(folder) as session:
            for stem, case in left.items():
                for run, name in _to_record(case, stem, baselines):
                    say(name)
                    session.run(run, name)
            traces = session.close()
        left = {stem: case for stem, case in left.items() if _lost(stem, traces)}
        if not left:
            break
    else:
        raise FailedError("the recorder lost events in every attempt", hint="an idler machine")
    for stem, case in cases.items():
        for run, name in _in_order(case, stem, baselines) if case.told else []:
            say(f"{name}, unrecorded")
            run_unrecorded(run, name, folder)


def _to_record(case: Case, stem: str, baselines: int) -> list[tuple[Run, str]]:
    if case.told:
        return [(case.baseline, f"{stem}-recorded")]
    return _in_order(case, stem, baselines)


def _in_order(case: Case, stem: str, baselines: int) -> list[tuple[Run, str]]:
    runs = [(case.baseline, name) for name in _baseline_names(stem, baselines)]
    runs.insert((baselines + 1) // 2, (case.real, f"{stem}-real"))
    return runs


def _lost(stem: str, traces: Mapping[str, Trace]) -> bool:
    """Say whether a run's recording lost events; that pages went out which name no place is so every time."""
    return any(
        not reason.startswith(SWAP_OUT_UNPLACED)
        for name, trace in traces.items()
        if name.startswith(f"{stem}-")
        for reason in trace.losses["reason"]
    )


def was_kept(stem: str, folder: Path) -> bool:
    """Say whether an earlier call left recordings of these names in a folder."""
    return (folder / f"{stem}-real.json").is_file()


def kept_runs(stem: str, folder: Path) -> Runs:
    """Return the recordings of these names in a folder; raises `UsageError` where there are none."""
    more = len(list(folder.glob(f"{glob.escape(stem)}-baseline[0-9]*.json")))
    unrecorded = (folder / f"{stem}-recorded.json").is_file()
    of = f"{stem}-recorded" if unrecorded else None
    baselines = [_kept_run(folder, name, of or name) for name in _baseline_names(stem, 1 + more)]
    return Runs(tuple(baselines), _kept_run(folder, f"{stem}-real", None if unrecorded else f"{stem}-real"))


def _account(said: Path) -> Account:
    return Account(json.loads(said.read_text()))


def _baseline_names(stem: str, count: int) -> list[str]:
    return [f"{stem}-baseline{n if n > 1 else ''}" for n in range(1, count + 1)]


def _kept_run(folder: Path, name: str, trace: str | None) -> Recording:
    """Return what a run said, with the trace of that name (None: there need be none)."""
    path, said = folder / f"{trace or name}.trace", folder / f"{name}.json"
    for left in (said,) if trace is None else (path, said):
        if not left.exists():
            raise UsageError(f"no earlier run left {left}", hint="without --again it is run")
    return Recording(path, _account(said))


def record_in_lab_host(
    names: Sequence[str], seed: int, folder: Path, *, part: str, baselines: int, say: Callable[[str], None]
) -> None:
    """Record the cases of these mechanisms in a lab host, all in one, and bring the recordings to a folder.

    Raises `FailedError` where a run fails there, `CapabilityError` where no lab host can be had.
    """
    from tracekit.lab.host.machine import HostMachine, HostPlan

    words = ("--record-only", "--profile", "published", "--seed", str(seed), "--baselines", str(baselines))
    with HostMachine(HostPlan(swap_bytes=_SWAP_BYTES, swap_latency_ns=_SWAP_LATENCY_NS), say=say) as machine:
        command = ("tracekit", "lab", "validate", *names, *words, "--case", part, "-o", ".")
        outcome = machine.qemu.execute(
            f"cd /out && {shlex.join(command)}", timeout_s=_SILENCE_S, tee=lambda text: say(text.rstrip())
        )
        machine.fetch(folder)
    if outcome.code:
        last = " ".join(outcome.output.strip().splitlines()[-2:])
        raise FailedError(f"in the lab host: {last}", hint=f"{folder} has the recordings made until then")


def is_lab_host() -> bool:
    """Say whether this is a lab host."""
    return "TRACEKIT_LAB_HOST" in os.environ
