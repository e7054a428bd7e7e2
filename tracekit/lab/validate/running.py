"""Runs cases: record, predict, really run, compare; again with other seeds."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tracekit.errors import CapabilityError, UsageError
from tracekit.lab import validate as room
from tracekit.lab.calibrate.profile import calibrate
from tracekit.lab.validate.case import Case, Recording, Runs
from tracekit.lab.validate.chance import with_chance
from tracekit.lab.validate.check import Check, check_all, measured, predicted, summarise
from tracekit.lab.validate.recording import (
    is_lab_host,
    kept_runs,
    record_in_lab_host,
    record_runs,
    stem_of,
    was_kept,
)
from tracekit.replay import Profile, load_profile
from tracekit.replay import run as replay

__all__ = ["Validation", "mechanisms", "validate"]

Cases = Callable[[int], list[Case]]


@dataclass(frozen=True)
class Validation:
    """Every check that was made, with what was left out and why; `about` names profile, host and seeds."""

    checks: tuple[Check, ...]
    left_out: dict[str, str]
    about: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return everything as one JSON-ready document."""
        return {
            "about": self.about,
            "summary": [one.to_json() for one in summarise(self.checks)],
            "checks": [one.to_json() for one in self.checks],
            "left_out": self.left_out,
        }


def runs_here(cases: Cases) -> bool:
    """Say whether none of these cases needs the lab host: those take minutes a run, and run when named."""
    return not any(case.in_lab_host for case in cases(0))


@cache
def mechanisms() -> dict[str, Cases]:
    """Return the cases by mechanism, each a function of the seed.

    >>> sorted(mechanisms())[-1]
    'zeroing'
    """
    found: dict[str, Cases] = {}
    for info in pkgutil.iter_modules(room.__path__):
        module = importlib.import_module(f"{room.__name__}.{info.name}")
        if hasattr(module, "cases"):
            found[info.name] = module.cases
    return found


def validate(
    names: Sequence[str],
    folder: Path,
    *,
    profile: Path | str | None = None,
    repeat: int = 1,
    seed: int = 0,
    first_only: bool = False,
    part: str = "",
    baselines: int = 2,
    again: bool = False,
    record_only: bool = False,
    lab_host: bool = False,
    say: Callable[[str], None] = lambda _: None,
    keep: Callable[[Validation], None] = lambda _: None,
) -> Validation:
    """Check the mechanisms of these names, each case `repeat` times with seeds from `seed` on.

    No names: all that need no lab host (those take minutes a run). No profile: this host is calibrated before
    each seed's runs (`host-SEED.toml` in `folder`), for a shared machine's speed drifts by the hour.
    Each baseline is recorded `baselines` times around its real run. `first_only` runs just the first case of
    each, `part` those whose name contains it; `record_only` predicts and compares nothing, which `again` does
    with what an earlier call left in `folder`, here or on another machine, and runs nothing; with `lab_host`
    all is recorded there, as the cases that need one always are. `keep` is given all there is after each
    seed. Traces are left in `folder`.

    A mechanism whose counterpart this host can't run is left out, with the reason. Raises `UsageError` for an
    unknown mechanism or where no case is called so, `FailedError` where a run fails.
    """
    known = mechanisms()
    if unknown := [name for name in names if name not in known]:
        raise UsageError(f"no validation of {unknown[0]}", hint=", ".join(known))
    if repeat < 1:
        raise UsageError("--repeat is at least 1", hint="--repeat 20")
    chosen = names or [name for name in known if runs_here(known[name])]

    elsewhere = [name for name in chosen if lab_host or not (runs_here(known[name]) or is_lab_host())]
    there = [] if again or is_lab_host() else elsewhere
    # What all was recorded elsewhere, no price of this host says anything of.
    given = profile or ("published" if elsewhere == chosen else None)

    def wanted(name: str, turn: int) -> list[Case]:
        kept = again or name in there
        cases = [
            case
            for case in known[name](turn)
            if part in case.name and (case.possible or (kept and was_kept(stem_of(case, turn), folder)))
        ]
        return cases[: 1 if first_only else None]

    called = [
        case.name for name in chosen for case in known[name](seed) if case.possible or again or name in there
    ]
    if not any(part in one for one in called):
        raise UsageError(f"no case's name contains {part!r} here", hint=", ".join(called))
    checks: list[Check] = []
    left_out: dict[str, str] = {}
    found = Validation((), {}, {})
    for turn in range(seed, seed + repeat):
        costs = load_profile(given or _calibrated(folder / f"host-{turn}.toml", again=again, say=say))
        if there:
            record_in_lab_host(there, turn, folder, part=part, baselines=baselines, say=say)
        for name in chosen:
            if name in left_out:
                continue
            cases = wanted(name, turn)
            try:
                if not (again or name in there):
                    record_runs({stem_of(case, turn): case for case in cases}, folder, baselines, say=say)
            except CapabilityError as error:
                left_out[name] = error.message
                say(f"{name} is left out: {error.message}")
            else:
                for case in [] if record_only else cases:
                    say(f"{name}: {case.name}, seed {turn}")
                    runs = kept_runs(stem_of(case, turn), folder)
                    checks += compare(case, turn, runs, costs)
        about = {
            "profile": str(given or "calibrated before each seed"),
            "seeds": list(range(seed, turn + 1)),
        }
        found = Validation(tuple(with_chance(checks)), dict(left_out), about)
        keep(found)
    return found


def _calibrated(path: Path, *, again: bool, say: Callable[[str], None]) -> Path:
    """Return the costs of this host as they are now; `again`: as they were then."""
    if again:
        if not path.exists():
            raise UsageError(f"no earlier run left {path}", hint="--profile FILE")
        return path
    say("calibrating this host")
    calibrate(sizes=()).save(path, force=True)
    return path


def compare(case: Case, seed: int, runs: Runs, profile: Profile) -> list[Check]:
    """Predict the real run from a case's recorded baseline, and compare."""
    last = _measured(case, runs.real, profile)
    befores, predictions, scenario = [], [], ""
    for before in runs.baselines:
        source = before.compared(case.guest_events(before) if case.guest_events else before.trace)
        scenario = case.scenario if isinstance(case.scenario, str) else case.scenario(before)
        result = replay(source, [scenario], profile=profile)
        befores.append(_measured(case, before, profile))
        predictions.append({**predicted(result, before, befores[-1]), **case.predict(before, result)})
    return check_all(case, scenario, seed, predictions=predictions, befores=befores, after=last)


def _measured(case: Case, recording: Recording, profile: Profile) -> Mapping[str, float]:
    """Return the metrics of a run: what it told itself, or its own ledger with nothing enabled."""
    if case.told:
        return case.told(recording.account)
    ledger = replay(recording.compared(recording.trace), ["baseline"], profile=profile)
    return measured(case, recording, ledger)
