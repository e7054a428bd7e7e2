"""A case: two runs that differ in just what a scenario switches on, and what to compare."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final, TypeVar

from tracekit.errors import UsageError
from tracekit.lab.validate.compared import Compared
from tracekit.replay import Result
from tracekit.trace import Trace, open_trace

__all__ = ["GOALS", "UNITS", "Account", "Case", "Prediction", "Recording", "Run", "Runs"]

T = TypeVar("T")

Prediction = Mapping[str, tuple[float, float | None, float | None]]
"""By metric: value, low, high; None: not bounded at that end."""

UNITS: Final[Mapping[str, str]] = {
    "faults": "count",
    "exits": "count",
    "stall": "ns",
    "time": "ns",
    "startup": "ns",
    "zeroed_twice": "bytes",
    "resident_mean": "bytes",
    "resident_peak": "bytes",
    "resident_end": "bytes",
    "shared": "bytes",
    "shared_end": "bytes",
    "waits": "count",
    "wall": "ns",
}
"""What can be compared: metrics of the ledger; `time`: of the guest's phases; `resident_end`: the last known;
`shared`: memory that merging saved after the first pass and at the end; `waits`: faults that waited for the
swap; `wall`: the guest's own clock."""

GOALS: Final[Mapping[str, float]] = {metric: 0.2 if unit == "ns" else 0.1 for metric, unit in UNITS.items()}
"""The point error (a fraction) that each prediction is meant to stay below."""


@dataclass(frozen=True)
class Run:
    """A recorded run: words after `tracekit`, and what is around them while they run.

    `around` is entered before the recording begins, undoes all it did, and gives more words for the command.
    """

    words: tuple[str, ...]
    around: Callable[[], AbstractContextManager[tuple[str, ...]]] = lambda: nullcontext(())

    def plus(self, *more: str) -> Run:
        """Return the same run with more words."""
        return replace(self, words=(*self.words, *more))


class Account(dict[str, Any]):
    """What a run said of itself; `UsageError` for what it did not say."""

    def __missing__(self, key: str) -> Any:
        raise self._of_another_version(key)

    def made(self, kind: type[T], key: str) -> T:
        """Return what it said under a key as an object of a dataclass; `UsageError` for other fields."""
        try:
            return kind(**self[key])
        except TypeError as error:
            raise self._of_another_version(key) from error

    def _of_another_version(self, key: str) -> UsageError:
        return UsageError(
            f"a recorded run says nothing of {key!r} that this version reads: another one made it",
            hint="tracekit lab validate without --again records anew",
        )


@dataclass(frozen=True)
class Recording:
    """A run's trace on disk, and what the run said of itself (its --json)."""

    path: Path
    account: Account

    @cached_property
    def trace(self) -> Trace:
        """The trace, opened."""
        return open_trace(self.path)

    def compared(self, trace: Trace) -> Trace | Compared:
        """Return what is compared of this run's trace: a small guest's without its low area."""
        first = self.account.get("first_gfn")
        return trace if first is None else Compared(trace, first)


@dataclass(frozen=True)
class Runs:
    """The recordings of a case: the same baseline once or more, and the real run in their middle.

    Where these were not recorded, the trace of each baseline is of one more run, and the real run has none.
    """

    baselines: tuple[Recording, ...]
    real: Recording


def _nothing_more(recording: Recording, ledger: Result) -> Mapping[str, float]:
    return {}


def _nothing_else(recording: Recording, result: Result) -> Prediction:
    return {}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One what-if with a real counterpart: `scenario` over a recording of `baseline` predicts `real`.

    The scenario may take a parameter (how long ahead) from that recording.

    `compare` names metrics of `UNITS`. `measure` gives what only this case can tell of a recording and its
    ledger, by metric; `predict` what only it reads out of the scenario's result over the baseline. With
    `guest_events` the guest's account of its pages is merged into the baseline, as a trace of
    `record --guest` would be. `emulated` runs have no times of a real machine. Where the model says no more
    than a bound (`bound_only`), there is no point to be in error. `runs_of` names another case of the
    mechanism, of whose recordings this one is another reading. A case that is not `possible` on this machine
    is compared where it has been recorded elsewhere; one that is `in_lab_host` is recorded there.

    Where recording changes what is compared, `told` reads all of it from a run's own account: it is measured
    in runs that nobody records, then, and a recording of the baseline only predicts.
    """

    mechanism: str
    name: str
    scenario: str | Callable[[Recording], str]
    baseline: Run
    real: Run
    compare: tuple[str, ...]
    guest_events: Callable[[Recording], Any] | None = None
    measure: Callable[[Recording, Result], Mapping[str, float]] = field(default=_nothing_more)
    predict: Callable[[Recording, Result], Prediction] = field(default=_nothing_else)
    told: Callable[[Account], Mapping[str, float]] | None = None
    emulated: bool = False
    bound_only: bool = False
    runs_of: str = ""
    possible: bool = True
    in_lab_host: bool = False
