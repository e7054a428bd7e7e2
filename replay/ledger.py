"""From counters to figures: what a replay did to every metric, with interval and label.

Every figure is baseline, counterfactual and saved, where saved = baseline - counterfactual exactly. The
interval bounds `saved`: it holds what is consistent with the trace and with the range of each cost used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tracekit.replay import accounts as ac
from tracekit.replay import events as ev
from tracekit.replay.amounts import Amount
from tracekit.replay.mechanisms import Context, Mechanism, Stage
from tracekit.replay.pages import CLOCK_UNPLACED
from tracekit.replay.pricing import Prices, class_name
from tracekit.replay.quantiles import moved, quantile
from tracekit.replay.residency import Residency
from tracekit.replay.state import Replay, union_ns, vcpu_lanes
from tracekit.replay.survey import Survey
from tracekit.replay.timeline import Timeline
from tracekit.trace.schema import PAGE_BYTES

__all__ = ["Figure", "Ledger", "unit_of", "weaker", "widened", "with_all"]

GIB_S = float(1 << 30) * 1e9 / PAGE_BYTES  # page·ns in one GiB·s

_UNITS: Mapping[str, str] = {
    "faults": "count",
    "exits": "count",
    "refaults": "count",
    "stall": "ns",
    "stall_p50": "ns",
    "stall_p99": "ns",
    "stall_p99.9": "ns",
    "critical_path": "ns",
    "startup": "ns",
    "guest_cpu": "ns",
    "host_cpu_path": "ns",
    "host_cpu_background": "ns",
    "hypercall_time": "ns",
    "zeroed_twice": "bytes",
    "resident_mean": "bytes",
    "resident_peak": "bytes",
    "resident_time": "GiB*s",
    "hypercalls": "count",
    "prefaults_wasted": "pages",
}


def unit_of(metric: str) -> str:
    """Return the unit of a metric, of the whole trace or of a part (`METRIC:PART`).

    >>> unit_of("stall:boot"), unit_of("faults_ept_4k")
    ('ns', 'count')
    """
    return _UNITS.get(metric.partition(":")[0], "count")


@dataclass(frozen=True)
class Figure:
    """One metric: baseline and counterfactual value, the interval of what is saved, and the label."""

    baseline: float
    counterfactual: float
    saved: Amount
    label: str

    @classmethod
    def of(cls, baseline: float, saved: Amount, label: str) -> Figure:
        """Return the figure in which `saved` was taken off the baseline."""
        return cls(baseline, baseline - saved.value, saved, label)


LABELS = ("measured", "bounded", "assumed")


def weaker(*labels: str) -> str:
    """Return the label of a figure that rests on all of these: assumed over bounded over measured."""
    return max(labels, key=LABELS.index)


@dataclass(frozen=True)
class Ledger:
    """Reads the counters of one replay; `before` is resident memory as recorded."""

    replay: Replay
    before: Residency
    timeline: Timeline
    facts: Survey
    mechanisms: Sequence[Mechanism]
    contexts: Mapping[str, Context]
    prices: Prices
    from_start: bool = True
    """Whether it tells of the start: what has to be done before it counts."""

    def figures(self, only: Sequence[str] = ()) -> dict[str, Figure]:
        """Return every metric that this replay has something on, or `only` some (of faults, stall, time)."""
        found = {**self._faults(), **self._stall(), **self._time()}
        if only:
            return {name: found[name] for name in only if name in found}
        return {**found, **self._resident(), **self._tallies()}

    # -- faults

    def _fault_table(self) -> NDArray[np.int64]:
        """Return what became of all faults: those that are booked nowhere stayed as they were."""
        shape = (len(self.mechanisms) + 1, ac.VERDICTS, ev.CLASSES, ac.CELLS)
        table = self.replay.world.faults.reshape(shape).copy()
        facts = self.facts
        unmeasured = facts.faults - facts.measured
        new = facts.latency_ns + unmeasured * self.prices.nominal()
        rest = np.stack([facts.faults, facts.latency_ns, unmeasured, new], axis=1) - table.sum(axis=(0, 1))
        # What stayed takes as long as it took, whatever the others take now.
        rest[:, ac.NEW_NS] = rest[:, ac.BASE_NS] + rest[:, ac.UNMEASURED] * self.prices.nominal()
        table[0, ac.KEPT] += rest
        return table

    def _added_table(self) -> NDArray[np.int64]:
        """Return the faults that were added; inside a VMM the guest's are its threads', and no exits."""
        shape = (len(self.mechanisms) + 1, ac.REASONS, -1, ev.LEVELS, 2)
        added = self.replay.world.added.reshape(shape)
        if self.facts.inside_vmm:
            added = added.copy()
            for guest, host in ((ev.EPT, ev.HOST_MINOR), (ev.EPT_MAJOR, ev.HOST_MAJOR)):
                added[:, :, host] += added[:, :, guest]
                added[:, :, guest] = 0
        return added.reshape(*shape[:2], ev.CLASSES, 2)

    def _on(self) -> list[Mechanism]:
        return [m for m in self.mechanisms if m.name in self.contexts]

    def _label(self) -> str:
        """Return what the counts rest on: the weakest of the mechanisms that are on."""
        on = self._on()
        labels = [m.label(self.contexts[m.name]) for m in on]
        guessed = "bounded" if on and self.facts.assumed_slots else "measured"
        return weaker(guessed, *labels)

    def _faults(self) -> dict[str, Figure]:
        table, added = self._fault_table()[..., ac.COUNT].sum(axis=0), self._added_table()[..., 0].sum(axis=0)
        before = table.sum(axis=0)
        gone = table[ac.SKIPPED] + table[ac.HIT] + table[ac.REPRICED]
        saved = gone - added.sum(axis=0)
        label = self._label()
        figures = {"faults": Figure.of(int(before.sum()), Amount.exact(saved.sum()), label)}
        names = [class_name(one) for one in range(ev.CLASSES)]
        for name in dict.fromkeys(names):
            mine = np.array([n == name for n in names])
            if before[mine].any() or saved[mine].any():
                figures[f"faults_{name}"] = Figure.of(
                    int(before[mine].sum()), Amount.exact(saved[mine].sum()), label
                )
        exits = np.array([name.startswith("ept") for name in names])
        calls = int(self._tally_sum(ac.HYPERCALLS))
        if before[exits].any() or calls or saved[exits].any():
            figures["exits"] = Figure.of(
                int(before[exits].sum()), Amount.exact(saved[exits].sum() - calls), label
            )
        refaults = int(added[ac.REFAULT].sum())
        figures["refaults"] = Figure.of(0, Amount.exact(-refaults), label)
        return figures

    # -- stall

    def _stall(self) -> dict[str, Figure]:
        table, added = self._fault_table().sum(axis=0), self._added_table().sum(axis=0)
        unmeasured = table[..., ac.UNMEASURED]
        base = table[..., ac.BASE_NS] + unmeasured * self.prices.nominal()
        new = table[..., ac.NEW_NS]
        every = np.ones(ev.CLASSES, bool)
        minor = np.array(["major" not in class_name(one) for one in range(ev.CLASSES)])
        figures: dict[str, Figure] = {}
        for name, mask in (("stall", every), ("host_cpu_path", minor)):
            value = int((base - new)[:, mask].sum() - added[[ac.REFAULT, ac.DEFERRED]][:, mask, 1].sum())
            spread, priced = self._spread(mask)
            priced |= bool(unmeasured[:, mask].any())
            label = weaker(self._label(), "assumed" if priced else "measured")
            saved = Amount(value, value + spread.low, value + spread.high)
            figures[name] = Figure.of(int(base[:, mask].sum()), saved, label)
        figures.update(self._quantiles(figures["stall"].label))
        # Wall-clock time of faults: the host works for some of it, nobody knows how much.
        path = figures["host_cpu_path"]
        saved = path.saved._replace(low=min(0.0, path.saved.low), high=max(0.0, path.saved.high))
        figures["host_cpu_path"] = replace(path, saved=saved, label=weaker(path.label, "bounded"))
        return figures

    def _spread(self, mask: NDArray[np.bool_]) -> tuple[Amount, bool]:
        """Return how far prices could move the saved stall (around 0), and whether any was used.

        Recorded latencies are exact. A fault that was shortened takes what a price says, one that was
        overlapped the price of the switches; its range is in the hypotheses of what did it.
        """
        table, added = self._fault_table().sum(axis=0), self._added_table().sum(axis=0)
        changed = table[1:, :, ac.UNMEASURED].sum(axis=0)
        # A first touch that is put off happens at another time: it takes what faults of its class take.
        extra = self._refaults_by_class() + added[[ac.INSTEAD, ac.DEFERRED], :, 0].sum(axis=0)
        low = high = 0.0
        for one in np.flatnonzero(mask):
            price = self.prices.amounts[one]
            for n in (int(changed[one]), -int(extra[one])):
                spread = price.times(n)
                low += spread.low - spread.value
                high += spread.high - spread.value
        short = bool(table[[ac.SHORTENED, ac.OVERLAPPED]][:, mask, ac.COUNT].any())
        used = bool(changed[mask].any() or extra[mask].any() or short)
        return Amount(0.0, min(low, 0.0), high), used

    def _refaults_by_class(self) -> NDArray[np.int64]:
        """Return the refaults that cost what faults of their class cost, not what a mechanism says."""
        rows = [not m.prices_refaults for m in self.mechanisms]
        return np.asarray(self._added_table()[1:, ac.REFAULT, :, 0][rows].sum(axis=0), np.int64)

    def _self_priced_refaults(self) -> NDArray[np.int64]:
        """Return the refaults that cost what a mechanism says, by class."""
        rows = [m.prices_refaults for m in self.mechanisms]
        found = np.zeros((ac.REASONS, ev.CLASSES), np.int64)
        refaults = self._added_table()[1:, ac.REFAULT, :, 0]
        found[ac.REFAULT] = refaults[rows].sum(axis=0)
        return found

    def _quantiles(self, label: str) -> dict[str, Figure]:
        nominal = self.prices.nominal()
        before_n = self.facts.faults - self.facts.measured
        before = self.facts.histogram
        np.add.at(before, ac.histogram_cells(nominal), before_n)
        after = before + self.replay.world.histogram
        instead = self._added_table().sum(axis=0)[ac.INSTEAD, :, 0]
        kept = self._fault_table().sum(axis=0)[ac.KEPT, :, ac.UNMEASURED]
        after_n = kept + self._refaults_by_class() + instead
        low = np.array([int(price.low) for price in self.prices.amounts])
        high = np.array([int(price.high) for price in self.prices.amounts])
        figures = {}
        for name, q in (("stall_p50", 0.5), ("stall_p99", 0.99), ("stall_p99.9", 0.999)):
            base, new = quantile(before, q)[0], quantile(after, q)[0]
            saved = Amount.exact(base - new)
            if self.replay.world.histogram.any():
                # The cell says no more than its edges, and what was priced may lie in another one.
                least = quantile(moved(before, before_n, nominal, low), q)[0]
                most = quantile(moved(before, before_n, nominal, high), q)[1]
                new_least = quantile(moved(after, after_n, nominal, low), q)[0]
                new_most = quantile(moved(after, after_n, nominal, high), q)[1]
                saved = Amount(saved.value, least - new_most, most - new_least)
            mine = weaker(label, "bounded" if saved.low < saved.high else "measured")
            figures[name] = Figure.of(base, saved, mine)
        return figures

    # -- time

    def _time(self) -> dict[str, Figure]:
        world, span = self.replay.world, self.timeline.span_ns
        lanes = vcpu_lanes(self.timeline)
        startup = self._priced("startup") if self.from_start else Amount.exact(0)
        if not len(lanes):
            return {}
        shift = world.shift[lanes]
        critical = int(np.argmax(self.facts.last_ns[lanes]))
        value = int(shift[critical])
        union = union_ns(world)
        # All vCPUs independent: the one that gained least decides. All waiting for each other: every stretch
        # of stall that was removed on any of them counts once. Prices move it as far as they move the stall.
        spread, _ = self._spread(np.ones(ev.CLASSES, bool))
        calls = self._priced("hypercall_time")
        # What is known of all vCPUs, or of none: the critical one has its share by faults, all or nothing.
        faults = self.facts.lane_faults[lanes].sum(axis=1)
        share = float(faults[critical] / faults.sum()) if faults.any() else 1 / len(lanes)
        beside, unplaced = self._beside_stall(), Amount.exact(int(world.clock[CLOCK_UNPLACED]))
        if len(lanes) > 1:
            beside, unplaced = (
                Amount(some.value * share, min(0.0, some.low), max(0.0, some.high))
                for some in (beside, unplaced)
            )
        others = beside.plus(unplaced)
        # Work that the vCPUs do themselves; a vCPU that would have been idle loses nothing by it.
        work = self._priced("on_path")
        saved = Amount(
            value + others.value - work.value * share,
            min(value, int(shift.min())) + spread.low + calls.value - calls.high + others.low - work.high,
            max(value, int(shift.max()), union) + spread.high + calls.value - calls.low + others.high,
        ).minus(startup)
        label = weaker(self._label(), "bounded" if saved.low < saved.high else "measured")
        figures = {"critical_path": Figure.of(span, saved, "assumed" if self._uses_prices() else label)}
        if startup.high:
            figures["startup"] = Figure.of(0, startup.times(-1), "assumed")
        return figures

    def _beside_stall(self) -> Amount:
        """Return what all vCPUs are spared besides stall: ways out and in, and the guest's own zeroing.

        Pages backed ahead are no longer in the caches when they are touched: that is lost.
        """
        table, added = self._fault_table()[..., ac.COUNT].sum(axis=0), self._added_table()[..., 0].sum(axis=0)
        # The price of a refault that a mechanism sets itself holds the way out and back.
        added = added - self._self_priced_refaults()
        gone = table[ac.SKIPPED] + table[ac.HIT] + table[ac.REPRICED] - added.sum(axis=0)
        exits = sum(int(n) for one, n in enumerate(gone) if class_name(one).startswith("ept"))
        hits = self._fault_table()[..., ac.COUNT][:, (ac.HIT, ac.SHORTENED)].sum(axis=(1, 2))
        cold = sum(
            int(hits[k])
            for k, m in enumerate(self.mechanisms, 1)
            if m.name in self.contexts and m.small_pages(self.contexts[m.name])
        )
        return self.prices.named({"exit": exits, "cold_touch_4k": -cold}).minus(self._priced("guest_cpu"))

    def _uses_prices(self) -> bool:
        """Return whether times in the counterfactual rest on any price."""
        if self._spread(np.ones(ev.CLASSES, bool))[1] or self._priced("startup").high:
            return True
        if self._priced("on_path").high or self._beside_stall() != Amount.exact(0):
            return True
        # Work beside the guest sets a time only where it makes memory ready.
        ahead = [m for m in self._on() if m.stage is Stage.BACK]
        return bool(self._priced("hypercall_time").high or self._priced("host_cpu_background", ahead).high)

    # -- memory

    def _resident(self) -> dict[str, Figure]:
        world, span = self.replay.world, max(self.timeline.span_ns, 1)
        lanes = vcpu_lanes(self.timeline)
        ahead = int(world.shift[lanes].min()) if len(lanes) else 0
        horizon = max(span - ahead, 1)
        after_all = Residency.of(world)
        before, (after, in_flight) = self.before.page_ns(span)[0], after_all.page_ns(horizon)
        # Prices move each change of what is resident by as much as they move the stall before it.
        spread = self._spread(np.ones(ev.CLASSES, bool))[0] if self.contexts else Amount.exact(0)
        changes = float((2 * world.gains - world.curve).sum())  # what came, and what went
        moved = max(-spread.low, spread.high) * changes + in_flight
        most = self.timeline.memory_bytes or self.timeline.index.pages * PAGE_BYTES
        earlier = self.facts.earlier_bytes
        longest = earlier and earlier / (1 << 30) * span / 1e9
        return {
            "resident_time": self._memory(
                before / GIB_S,
                after / GIB_S,
                longest,
                moved / GIB_S,
                most / PAGE_BYTES * (horizon - spread.low) / GIB_S,
            ),
            "resident_mean": self._memory(
                before / span * PAGE_BYTES,
                after / horizon * PAGE_BYTES,
                earlier,
                moved / horizon * PAGE_BYTES,
                most,
            ),
            "resident_peak": self._peak(after_all, span, horizon, earlier),
        }

    def _peak(self, after: Residency, span: int, horizon: int, earlier: float) -> Figure:
        """Return the peak; pages may come and go between two looks, unseen, in either run.

        As if all that came in such a span had come before any went; but where nothing is backed ahead no more
        than a limit lets be, and never above the recorded run's peak. (Where one vCPU is ahead of the
        recording and another is not, the one may have its pages before the other's are gone.)
        """
        before, peak = self.before.peak(span), after.peak(horizon)
        found = self._memory(before * PAGE_BYTES, peak * PAGE_BYTES, earlier)
        if after.same_as(self.before):
            return found
        on, as_recorded = self._on(), not self.replay.world.shift.any()
        most = after.most(horizon)
        if not any(m.stage is Stage.BACK for m in on):
            limits = [m.limit_pages(self.contexts[m.name]) for m in on if m.limit_pages is not None]
            most = min([most, *(max(limit, peak) for limit in limits)])
            most = min(most, before) if as_recorded else most
        unseen, recorded_unseen = max(most - peak, 0), self.before.most(span) - before
        low = found.saved.low - unseen * PAGE_BYTES
        high = found.saved.high + recorded_unseen * PAGE_BYTES
        label = weaker(found.label, "bounded" if unseen or recorded_unseen else "measured")
        return replace(found, saved=found.saved._replace(low=low, high=high), label=label)

    def _memory(
        self, before: float, after: float, earlier: float, moved: float = 0.0, most: float = 0.0
    ) -> Figure:
        """Return a figure of resident memory, with what may have been `earlier` than the recording.

        Prices may move it by `moved` either way, but not below none, nor above the `most` that there can be.

        Pages that were there before add to the baseline; a mechanism that takes memory could save them, one
        that backs memory ahead finds them there.
        """
        more, less = min(moved, max(most - after, 0.0)), min(moved, max(after, 0.0))
        saved = Amount(before - after, before - after - more, before - after + less)
        unsure = bool(earlier) or self.facts.assumed_slots
        taking = any(m.stage is Stage.TAKE for m in self._on())
        if self.contexts and (before != after or taking):
            saved = saved._replace(high=saved.high + earlier)
        label = weaker(self._label(), "bounded" if unsure else "measured")
        if before != after and self._uses_prices():
            label = "assumed"
        return Figure(before, after, saved, label)

    # -- what mechanisms count themselves

    def _tally(self) -> NDArray[np.int64]:
        return self.replay.world.tally.reshape(-1, ac.TALLIES)

    def _tally_sum(self, item: int) -> int:
        return int(self._tally()[:, item].sum())

    def _priced(self, metric: str, only: Sequence[Mechanism] | None = None) -> Amount:
        total = Amount.exact(0)
        for k, m in enumerate(self.mechanisms):
            if m.name in self.contexts and (only is None or m in only):
                counts = m.costs(self._tally()[k + 1], self.contexts[m.name])
                total = total.plus(self.prices.named(counts.get(metric, {})))
        return total

    def _tallies(self) -> dict[str, Figure]:
        label = self._label()
        figures = {
            "hypercalls": Figure.of(
                int(self.timeline.seen[ev.HYPERCALL]), Amount.exact(-self._tally_sum(ac.HYPERCALLS)), label
            ),
            "prefaults_wasted": Figure.of(0, Amount.exact(-self._wasted()), label),
        }
        for metric in ("host_cpu_background", "hypercall_time"):
            added = self._priced(metric)
            figures[metric] = Figure.of(0, added.times(-1), "assumed" if added.high else label)
        candidates, spared = self._tally_sum(ac.CANDIDATES), self._tally_sum(ac.ZEROING_SPARED)
        if candidates:
            base, saved = self._priced("baseline:guest_cpu"), self._priced("guest_cpu").times(-1)
            figures["guest_cpu"] = Figure.of(base.value, saved, "assumed")
            figures["zeroed_twice"] = Figure.of(
                candidates * PAGE_BYTES, Amount.exact(spared * PAGE_BYTES), label
            )
        return figures

    def _wasted(self) -> int:
        unused = self.replay.unused()[1:].sum()
        return int(unused) + self._tally_sum(ac.PREFAULTS_UNUSED)


def with_all(figures: Mapping[str, Figure], others: Sequence[Mapping[str, Figure]]) -> dict[str, Figure]:
    """Return the figures with every metric that others have: nothing is saved of one that is not here.

    A class of faults that only some replays add has no figure in those that don't.
    """
    found = dict(figures)
    for name, one in ((name, one) for other in others for name, one in other.items()):
        found.setdefault(name, Figure.of(one.baseline, Amount.exact(0), one.label))
    return found


def widened(figure: Figure, others: Sequence[Figure]) -> Figure:
    """Return the figure with an interval that holds what the other hypotheses say."""
    saved = figure.saved
    for other in others:
        saved = saved.hull(other.saved)
    label = figure.label
    if others and saved.low < saved.high:
        label = weaker(label, "bounded")
    return replace(figure, saved=saved, label=label)
