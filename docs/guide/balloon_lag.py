"""How lag-prone is my balloon? Its rate, its cost per page, and how soon what it took was needed again."""

import sys

import polars as pl

import tracekit as tk
from tracekit.datasets.catalog import trace_path
from tracekit.datasets.frame import EventsNamespace

path = sys.argv[1] if len(sys.argv) > 1 else trace_path("linux-balloon-reporting")
events = tk.open(path).events
for kind in ("balloon_inflate", "balloon_deflate", "free_page_report"):
    rows = events.filter(pl.col("kind") == kind).select("ts_ns", "pages", "latency_ns").collect()
    if rows.height:
        seconds = max((rows["ts_ns"].max() - rows["ts_ns"].min()) / 1e9, 1e-9)
        mib = rows["pages"].sum() * 4096 / 2**20
        per_page = rows["latency_ns"].sum() / rows["pages"].sum()
        print(f"{kind:17} {rows.height:7,} calls {mib:6.0f} MiB in {seconds:5.2f} s, {per_page:6.0f} ns/page")
reuse = EventsNamespace(events).reuse_after_discard().collect()
back = reuse.filter(pl.col("gap_ns").is_not_null())
print(f"{back.height:,} of {reuse.height:,} discarded pages were needed again while the trace lasted")
if back.height:
    print(f"half of those within {back['gap_ns'].median() / 1e9:.2f} s: those were taken in vain")
