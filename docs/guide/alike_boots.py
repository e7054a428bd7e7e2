"""Are two boots alike enough to prefetch from? Compare which pages they touch, and in which order."""

import sys

import polars as pl

import tracekit as tk
from tracekit.datasets.catalog import trace_path
from tracekit.datasets.frame import EventsNamespace

paths = sys.argv[1:3] or [trace_path("linux-boot"), trace_path("limit-zram")]
first, second = (EventsNamespace(tk.open(path).events).first_touches().collect() for path in paths)
first, second = (touched.sort("ts_ns").with_row_index("turn") for touched in (first, second))
both = first.join(second, on="gfn", suffix="_second")
union = first["gfn"].n_unique() + second["gfn"].n_unique() - both.height
jaccard = both.height / union
print(f"{first.height:,} and {second.height:,} mappings, {both.height:,} in both: Jaccard {jaccard:.2f}")
order = both.select(rho=pl.corr("turn", "turn_second", method="spearman")).item()
print(f"order of the common pages: rank correlation {order:.2f}")
hits, waste = both.height / second.height, 1 - both.height / first.height
print(f"prefetching the first's pages would cover {hits:.0%} of the second's faults and waste {waste:.0%}")
