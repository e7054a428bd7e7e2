"""What did the boot wait for? Stall by kind of event, the longest faults, and when they came."""

import sys

import polars as pl

import tracekit as tk
from tracekit.datasets.catalog import trace_path
from tracekit.datasets.frame import EventsNamespace

path = sys.argv[1] if len(sys.argv) > 1 else trace_path("linux-boot")
trace = tk.open(path)
guest = trace.events.filter(pl.col("gfn").is_not_null())
latency = EventsNamespace(guest).latency_quantiles([0.5, 0.99]).collect()
for row in latency.sort("total_ns", descending=True).iter_rows(named=True):
    print(
        f"vm {row['vm']} {row['kind']:14} {row['count']:7,} x, {row['total_ns'] / 1e6:8.1f} ms in all, "
        f"p50 {row['p50_ns'] / 1e3:.1f} us, p99 {row['p99_ns'] / 1e3:.1f} us"
    )
start = trace.meta.start_ns or 0
for row in guest.top_k(3, by="latency_ns").select("ts_ns", "kind", "gfn", "latency_ns").collect().iter_rows():
    print(f"at {(row[0] - start) / 1e9:6.2f} s: {row[1]} of gfn {row[2]:#x} took {row[3] / 1e6:.1f} ms")
