"""The guest side beside ftrace, again and again under load: which pages did one see and the other not?

    python -m tests.endurance.guest_counts FOLDER [--runs 20] [--busy 4]

Each run is the live test of the page events (`test_record_counts`). Of a run in which more were missed
than the ledger says, the rows of both sides stay in FOLDER, and each missed row is printed.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

import polars as pl

TEST = "tests/live/test_record_counts.py"
BUSY = "import os\nos.nice(19)\nwhile True: sum(range(10000))"
NEAR_NS = 200_000


def main() -> int:
    """Run, compare, keep; returns 1 if any run failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--busy", type=int, default=4)
    wanted = parser.parse_args()
    wanted.folder.mkdir(parents=True, exist_ok=True)
    failed = 0
    busy = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(wanted.busy)]
    try:
        for run in range(wanted.runs):
            kept = wanted.folder / f"run-{run}"
            pytest = [sys.executable, "-m", "pytest", "-q", "-x", TEST, "-k", "pages_and"]
            pytest += [f"--basetemp={kept}"]
            done = subprocess.run(pytest, capture_output=True, text=True, check=False, timeout=300)
            print(f"run {run}: {done.stdout.strip().splitlines()[-1]}", flush=True)
            if done.returncode:
                failed += 1
                kept.with_suffix(".log").write_text(done.stdout)
                for rows in kept.glob("*/theirs.parquet"):
                    tell(rows.parent)
            else:
                shutil.rmtree(kept)
    finally:
        for one in busy:
            one.kill()
            one.wait()
    print(f"{failed} of {wanted.runs} runs failed")
    return int(failed > 0)


def tell(kept: Path) -> None:
    """Print the rows that only one side has, and what both sides saw around the first of them."""
    ours, theirs = (pl.read_parquet(kept / f"{side}.parquet") for side in ("ours", "theirs"))
    for kind, event in (("page_alloc", "mm_page_alloc"), ("page_free", "mm_page_free")):
        mine = ours.filter(pl.col("kind") == kind).select("ts_ns", "tid", "gfn", "pages", "vcpu")
        page = pl.col("text").str.extract(r"pfn=0x([0-9a-f]+)").str.to_integer(base=16, dtype=pl.UInt64)
        seen = theirs.filter(pl.col("event") == event).with_columns(pl.col("tid").cast(pl.UInt32), gfn=page)
        for only, rows, others in (("ftrace", seen, mine), ("tracekit", mine, seen)):
            left = unmatched(rows, others)
            if left.height:
                print(f"{kind}: only {only} has {left.height}:\n{left.head(20)}", flush=True)
                at = left["ts_ns"][0]
                for side, around in (("tracekit", ours), ("ftrace", theirs)):
                    near = around.filter((pl.col("ts_ns").cast(pl.Int64) - int(at)).abs() < NEAR_NS)
                    print(f"{side} around it: {near.height} rows, kept in {kept}", flush=True)


def unmatched(rows: pl.DataFrame, others: pl.DataFrame) -> pl.DataFrame:
    """Return the rows of pages and threads of which the others have fewer, in time order."""
    keys = ["tid", "gfn"]
    counts = rows.group_by(keys).len("here").join(others.group_by(keys).len("there"), on=keys, how="left")
    fewer = counts.filter(pl.col("here") > pl.col("there").fill_null(0)).select(keys)
    return rows.join(fewer, on=keys, how="semi").sort("ts_ns")


if __name__ == "__main__":
    sys.exit(main())
