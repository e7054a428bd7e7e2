"""Replays of a spatial sample: figures scaled up to the whole guest, and how far chance may have moved them.

A sample (`tracekit compact --sample`, `tracekit record --sample`) holds all events of some of the guest's 2
MiB blocks. What a mechanism does to a page then follows from its own block, for mechanisms that look no
further (`page_local`); others would see a guest that does a share of its work, and are refused.

Scales: faults before over faults in the sample, and the same of their latencies for what is counted in time
and of their pages for memory, all counted when the sample was taken (ratio estimators: a share of the
faults has no error from *how many* faults the chosen blocks had). What chance leaves open is no
identification interval, and is kept apart from it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import numpy as np

from tracekit.errors import UsageError
from tracekit.replay import events as ev
from tracekit.replay.ledger import Figure, weaker
from tracekit.replay.mechanisms import Mechanism
from tracekit.replay.timeline import Timeline
from tracekit.trace.sampling import scale_of

__all__ = ["Sample", "require_local", "sample_of"]

_IN_TIME: Final = ("stall", "host_cpu_path", "critical_path")
_MEMORY: Final = (
    "resident_mean",
    "resident_peak",
    "resident_time",
    "prefaults_wasted",
    "startup",
    "host_cpu_background",
)
_SHAPES: Final = ("stall_p50", "stall_p99", "stall_p99.9")
_WHOLE_BASELINE: Final = ("critical_path", "hypercalls", "hypercall_time")
"""Figures whose baseline the sample holds in full: the trace's length, and calls of no address."""


@dataclass(frozen=True)
class Sample:
    """A sample of a `share` of the guest's blocks, of which `blocks` had faults.

    `count_scale`, `time_scale` and `memory_scale` bring figures up to the whole guest. `spread` is sqrt((1 -
    share) * sum of squares) / sum over the blocks' faults: the relative standard error of their total.
    """

    share: float
    count_scale: float
    time_scale: float
    memory_scale: float
    blocks: int
    spread: float

    def scaled(self, figures: Mapping[str, Figure]) -> dict[str, Figure]:
        """Return the figures of the whole guest; that the rest behaves as the sample does is *assumed*."""
        return {name: self._scaled(name, figure) for name, figure in figures.items()}

    def standard_error(self, metric: str, baseline: float, saved: float) -> float:
        """Return how far chance moves `saved`: as if each block were saved as a whole or not at all.

        How many faults there were is known, how long pages stayed is not: memory has the error of a total, of
        what there was or of what there would be, whichever is more.

        >>> sample = Sample(share=0.1, count_scale=10, time_scale=10, memory_scale=10, blocks=100, spread=0.1)
        >>> [sample.standard_error("faults", 1000, part) for part in (500, 1000, -20)]
        [50.0, 0.0, 2.0]
        >>> [sample.standard_error("resident_mean", 1000, part) for part in (1000, -500)]
        [100.0, 150.0]
        """
        part = saved / baseline if baseline else -1.0
        if metric in _MEMORY:
            return max(baseline, baseline - saved) * self.spread
        if not 0 <= part <= 1:
            return abs(saved) * self.spread
        return baseline * math.sqrt(part * (1 - part)) * self.spread

    def note(self) -> str:
        """Return what a reader must know."""
        return (
            f"a sample of {self.share:.3g} of the guest's memory ({self.blocks} blocks with faults), scaled"
            f" up; chance moves what is saved by at most {50 * self.spread:.2g} % of its baseline (std error)"
        )

    def about(self) -> dict[str, Any]:
        """Return this for the result's provenance."""
        return asdict(self)

    def _scaled(self, name: str, figure: Figure) -> Figure:
        name, label = name.partition(":")[0], weaker(figure.label, "assumed")
        if name in _SHAPES:
            return replace(figure, label=label)
        scale = self.count_scale
        if name in _IN_TIME:
            scale = self.time_scale
        elif name in _MEMORY:
            scale = self.memory_scale
        saved = figure.saved.times(scale)
        if name in _WHOLE_BASELINE:
            return Figure.of(figure.baseline, saved, label)
        return Figure(figure.baseline * scale, figure.counterfactual * scale, saved, label)


def sample_of(timeline: Timeline) -> Sample | None:
    """Return what a surveyed timeline is a sample of; None if it holds all of the guest's memory."""
    if timeline.share == 1:
        return None
    facts: Mapping[str, Any] = timeline.trace.meta.sampling
    faults = np.zeros(max(timeline.index.pages // ev.BLOCK_PAGES, 1), np.int64)
    for columns in timeline:
        mine = (columns.op == ev.FAULT) & (columns.bits & ev.CONTINUED == 0) & (columns.page >= 0)
        faults += np.bincount(columns.page[mine] // ev.BLOCK_PAGES, minlength=len(faults))
    total = int(faults.sum())
    squares = float((faults.astype(np.float64) ** 2).sum())
    return Sample(
        share=timeline.share,
        count_scale=scale_of(facts, "faults"),
        time_scale=scale_of(facts, "stall"),
        memory_scale=scale_of(facts, "pages"),
        blocks=int(np.count_nonzero(faults)),
        spread=math.sqrt((1 - timeline.share) * squares) / total if total else math.inf,
    )


def require_local(mechanisms: Iterable[Mechanism], params: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse, for a sample, what does not follow from a page's own block (UsageError)."""
    for m in mechanisms:
        if not m.page_local:
            raise UsageError(
                f"{m.name} looks at more than a page's own block, and this trace is a sample of blocks",
                hint="replay it on a whole trace",
            )
        if params.get(m.name, {}).get("size") == "1g":
            raise UsageError(f"{m.name} by 1 GiB needs all blocks; this trace is a sample", hint="size=2m")
