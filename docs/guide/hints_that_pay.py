"""Which hints would pay? Replay the same recording under several, and compare the stall each saves."""

import sys

import polars as pl

import tracekit as tk
from tracekit.datasets.catalog import trace_path

path = sys.argv[1] if len(sys.argv) > 1 else trace_path("small-guest-zero-then-use")
hints = ["hot_hint,policy=oracle", "hot_hint,policy=stride,n=8", "hugepages", "prealloc"]
hints.append("prealloc,via=pre_fault")  # fills the guest's own page table, too
rows = tk.what_if(path, hints).filter(pl.col("metric") == "stall", pl.col("mechanism") != "none")
for row in rows.sort("saved", descending=True).iter_rows(named=True):
    share = 100 * row["saved"] / row["baseline"] if row["baseline"] else 0
    low, high = ((row[end] or 0) / 1e6 for end in ("low", "high"))
    saved = f"{row['saved'] / 1e6:8,.1f} ms = {share:5.1f} % ({low:,.1f} to {high:,.1f}, {row['label']})"
    print(f"{row['scenario']:32} saves {saved}")
