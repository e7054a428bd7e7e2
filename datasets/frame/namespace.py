"""`events.tk`: the questions people ask of a trace, as methods of polars' LazyFrame.

Each returns a LazyFrame (collect it, with `engine="streaming"` where memory matters), by VM, and by trace
where `tracekit.datasets.scan` joined several. `events.tk.plot.QUESTION()` collects and draws the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import polars as pl

from tracekit.datasets.frame import faults, locality, residency

if TYPE_CHECKING:
    import altair as alt

__all__ = ["EventsNamespace", "EventsPlots"]


class EventsNamespace:
    """Questions on a LazyFrame of events (columns of `tracekit.trace.schema.EVENTS`, perhaps with `trace`).

    The examples ask small synthetic traces; a trace's own events are `tracekit.open(path).events`.

    >>> from tracekit.datasets.frame.example import example
    >>> answer = example("balloon-storm").tk.reuse_after_discard()
    >>> answer.select(pl.col("gap_ns").is_null().sum()).collect().item() > 0
    True
    """

    def __init__(self, events: pl.LazyFrame) -> None:
        self._events = events

    def first_touches(self) -> pl.LazyFrame:
        """Return the first fault of each page: keys, gfn, ts_ns, vcpu, pages, level, access, latency_ns.

        A page is what was mapped: `pages` 4 KiB pages from `gfn` on. Rows without a gfn are left out.

        >>> from tracekit.datasets.frame.example import example
        >>> touched = example("boot-linux").tk.first_touches().collect()
        >>> touched.height, touched["gfn"].n_unique()
        (1009, 1009)
        """
        return faults.first_touches(self._events)

    def faults_per_second(self, every: str | int = "1s") -> pl.LazyFrame:
        """Return faults over time: keys, kind, ts_ns (start of a bucket), faults, stall_ns, faults_per_s.

        `every`: width of a bucket ("100ms", or ns). Buckets without faults are 0. `stall_ns` sums latencies.

        >>> from tracekit.datasets.frame.example import example
        >>> rate = example("boot-linux").tk.faults_per_second("1ms").collect()
        >>> int(rate["faults"].sum()), rate["ts_ns"].diff().drop_nulls().unique().to_list()
        (1009, [1000000])
        """
        return faults.faults_per_second(self._events, every)

    def latency_quantiles(self, quantiles: Sequence[float] = (0.5, 0.9, 0.99, 0.999)) -> pl.LazyFrame:
        """Return latencies by kind and level: keys, kind, level, count, mean_ns, p50_ns …, max_ns, total_ns.

        Quantiles are of the nearest rank, so each is a latency that occurred.

        >>> from tracekit.datasets.frame.example import example
        >>> example("boot-linux").tk.latency_quantiles([0.5, 0.999]).collect().columns[4:7]
        ['mean_ns', 'p50_ns', 'p99_9_ns']
        """
        return faults.latency_quantiles(self._events, quantiles)

    def resident_curve(self, every: str | int | None = None) -> pl.LazyFrame:
        """Return resident memory over time: keys, ts_ns, resident_pages, resident_bytes.

        Counted from the events: faults, maps and swap-ins back pages; balloon inflation, reports, discarding
        advice, punched holes and swap-outs drop them. Pages there before the trace began are not in it.
        `every`: only the value at the end of each bucket.

        >>> from tracekit.datasets.frame.example import example
        >>> example("scan").tk.resident_curve().collect()["resident_pages"].max()
        100
        """
        return residency.resident_curve(self._events, every)

    def refault_distance(self) -> pl.LazyFrame:
        """Return each return of a swapped-out page: keys, gfn, out_ns, in_ns, gap_ns, distance.

        `distance` counts the evictions from the page's own to its return (the eviction clock of Linux'
        mm/workingset.c): with so many pages more it would have stayed, if eviction was in LRU order.

        >>> from tracekit.datasets.frame.example import example
        >>> example("scan").tk.refault_distance().collect()["distance"].unique().to_list()
        [100]
        """
        return residency.refault_distance(self._events)

    def working_set_curve(self, window: str | int = "1s") -> pl.LazyFrame:
        """Return pages touched per window: keys, ts_ns (its start), working_set_pages, working_set_bytes.

        From faults, accesses and allocations: pages that stayed mapped are only seen where accesses were
        sampled. Of sampled regions (DAMON) a window has its largest snapshot.

        >>> from tracekit.datasets.frame.example import example
        >>> example("boot-linux").tk.working_set_curve("1h").collect()["working_set_pages"].to_list()
        [1009]
        """
        return locality.working_set_curve(self._events, window)

    def heatmap(self, time_bins: int = 64, gfn_bins: int = 64) -> pl.LazyFrame:
        """Return touches by time and place: keys, ts_ns, gfn (starts of a bin), bin_ns, bin_pages, touches.

        An access row counts as often as its page or region was seen accessed. Empty bins are left out.

        >>> from tracekit.datasets.frame.example import example
        >>> int(example("boot-linux").tk.heatmap(8, 8).collect()["touches"].sum())
        1009
        """
        return locality.heatmap(self._events, time_bins, gfn_bins)

    def hot_cold_regions(self, region_pages: int = 512, share: float = 0.8) -> pl.LazyFrame:
        """Return how hot regions are: keys, gfn, touches, pages_touched, first_ns, last_ns, idle_ns, hot.

        Sorted by touches; `hot` marks the fewest regions that have `share` of all touches; `idle_ns` is the
        time from a region's last touch to the last of all.

        >>> from tracekit.datasets.frame.example import example
        >>> regions = example("working-set").tk.hot_cold_regions(region_pages=64).collect()
        >>> bool(regions["hot"][0]), bool(regions["hot"][-1])
        (True, False)
        """
        return locality.hot_cold_regions(self._events, region_pages, share)

    def double_zeroed_bytes(self) -> pl.LazyFrame:
        """Return bytes that the host zeroed and the guest zeroed again: keys, low_bytes, high_bytes, label.

        With guest-side rows: first touches whose page the guest next allocates zeroed (measured). Without
        them: between nothing and all pages first touched by a write (bounded).

        >>> from tracekit.datasets.frame.example import example
        >>> example("boot-windows").tk.double_zeroed_bytes().collect().row(0)
        (0, 0, 3305472, 'bounded')
        """
        return residency.double_zeroed_bytes(self._events)

    def reuse_after_discard(self) -> pl.LazyFrame:
        """Return each discard of a backed page: keys, gfn, kind, discard_ns, reuse_ns, gap_ns.

        `reuse_ns` is its next fault; null = it did not come back while the trace lasted (censored).

        >>> from tracekit.datasets.frame.example import example
        >>> reuse = example("balloon-storm").tk.reuse_after_discard().collect()
        >>> bool((reuse["gap_ns"].drop_nulls() > 0).all())
        True
        """
        return residency.reuse_after_discard(self._events)

    @property
    def plot(self) -> EventsPlots:
        """The same questions as charts: `events.tk.plot.heatmap()` is an Altair chart."""
        return EventsPlots(self)


class EventsPlots:
    """Each method asks the question of its name, collects the answer (streaming) and draws it.

    >>> from tracekit.datasets.frame.example import example
    >>> chart = example("balloon-storm").tk.plot.resident_curve("1ms")
    >>> chart.to_dict()["mark"]["type"]
    'line'
    """

    def __init__(self, questions: EventsNamespace) -> None:
        self._ask = questions

    def first_touches(self) -> alt.Chart:
        """Draw gfn over time."""
        from tracekit.datasets.frame import plots

        return plots.first_touches(_collected(self._ask.first_touches()))

    def faults_per_second(self, every: str | int = "1s") -> alt.Chart:
        """Draw the rate of faults."""
        from tracekit.datasets.frame import plots

        return plots.faults_per_second(_collected(self._ask.faults_per_second(every)))

    def latency_quantiles(self, quantiles: Sequence[float] = (0.5, 0.9, 0.99, 0.999)) -> alt.Chart:
        """Draw latency quantiles by kind and level."""
        from tracekit.datasets.frame import plots

        return plots.latency_quantiles(_collected(self._ask.latency_quantiles(quantiles)))

    def resident_curve(self, every: str | int | None = None) -> alt.Chart:
        """Draw resident memory."""
        from tracekit.datasets.frame import plots

        return plots.resident_curve(_collected(self._ask.resident_curve(every)))

    def refault_distance(self) -> alt.Chart:
        """Draw a histogram of refault distances."""
        from tracekit.datasets.frame import plots

        return plots.refault_distance(_collected(self._ask.refault_distance()))

    def working_set_curve(self, window: str | int = "1s") -> alt.Chart:
        """Draw the working set."""
        from tracekit.datasets.frame import plots

        return plots.working_set_curve(_collected(self._ask.working_set_curve(window)))

    def heatmap(self, time_bins: int = 64, gfn_bins: int = 64) -> alt.Chart:
        """Draw touches by time and place."""
        from tracekit.datasets.frame import plots

        return plots.heatmap(_collected(self._ask.heatmap(time_bins, gfn_bins)))

    def hot_cold_regions(self, region_pages: int = 512, share: float = 0.8) -> alt.Chart:
        """Draw touches by region."""
        from tracekit.datasets.frame import plots

        return plots.hot_cold_regions(_collected(self._ask.hot_cold_regions(region_pages, share)))

    def double_zeroed_bytes(self) -> alt.Chart:
        """Draw bytes zeroed twice, low to high."""
        from tracekit.datasets.frame import plots

        return plots.double_zeroed_bytes(_collected(self._ask.double_zeroed_bytes()))

    def reuse_after_discard(self) -> alt.Chart:
        """Draw a histogram of the time away."""
        from tracekit.datasets.frame import plots

        return plots.reuse_after_discard(_collected(self._ask.reuse_after_discard()))


if not hasattr(pl.LazyFrame, "tk"):
    pl.api.register_lazyframe_namespace("tk")(EventsNamespace)


def _collected(frame: pl.LazyFrame) -> pl.DataFrame:
    return frame.collect(engine="streaming")
