"""Is this VM zeroing twice? The host zeroes a page at its first touch; does the guest clear it again?"""

import sys

import tracekit as tk
from tracekit.datasets.catalog import trace_path
from tracekit.datasets.frame import EventsNamespace

path = sys.argv[1] if len(sys.argv) > 1 else trace_path("small-guest-zero-then-use")
trace = tk.open(path)
for vm, low, high, label in EventsNamespace(trace.events).double_zeroed_bytes().collect().iter_rows():
    if high:
        print(f"vm {vm}: {low / 2**20:,.0f} to {high / 2**20:,.0f} MiB zeroed by host and guest ({label})")

rows = tk.what_if(trace, "zeroing")
for row in rows.filter(metric="stall", mechanism="zeroing").head(1).iter_rows(named=True):
    print(
        f"skipping it saves {row['low'] / 1e6:,.1f} to {row['high'] / 1e6:,.1f} ms of stall ({row['label']})"
    )
print("a guest-side trace (tracekit record --guest) turns the interval into a number")
