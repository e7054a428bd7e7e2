"""Samples of blocks and traces without names: what is kept is kept whole, what is gone is gone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracekit.errors import UsageError
from tracekit.trace import MemslotMap, Meta, Trace, TraceWriter, compact, events_batch, open_trace
from tracekit.trace.rebasing import Rebase
from tracekit.trace.sampling import BLOCK_PAGES, Sampler, hashed

GIB = 1 << 30
HVA = 0x7FAB_CDE0_0000


def write(path: Path, **columns: object) -> Trace:
    meta = Meta(
        host={"hostname": "db7", "kernel": "6.1"},
        vms=[{"pid": 7, "argv": ["qemu", "-name", "secret"], "vcpus": 1, "page_bytes": 4096}],
        command=["qemu", "-name", "secret"],
        filters={"pids": [7]},
    )
    with TraceWriter(path, meta) as writer:
        for slot, (gpa, hva) in enumerate([(0, HVA), (4 * GIB, HVA + 2 * GIB + (5 << 21))]):
            writer.add_memslot(
                vm=0, slot=slot, gpa=gpa, size_bytes=GIB, hva=hva, flags=0, from_ns=0, known_by="ioctl"
            )  # fmt: skip
        writer.append(events_batch(**columns))  # type: ignore[arg-type]
    return open_trace(path)


def faults(path: Path, gfn: list[int]) -> Trace:
    return write(path, ts_ns=np.arange(len(gfn)) + 1, kind="ept_violation", gfn=gfn, level=1, latency_ns=100)


def table(trace: Trace) -> pl.DataFrame:
    return trace.events.collect()


def test_a_block_is_there_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    gfn = np.random.default_rng(1).integers(0, 200 * BLOCK_PAGES, 5000)
    whole = faults(tmp_path / "x.trace", gfn.tolist())
    report = compact(whole.path, tmp_path / "y.trace", sample=0.3)
    sample = open_trace(tmp_path / "y.trace")
    kept = set((table(sample)["gfn"] // BLOCK_PAGES).to_list())
    assert 30 < len(kept) < 90  # 60 of 200 are expected
    expected = table(whole).filter((pl.col("gfn") // BLOCK_PAGES).is_in(kept))
    assert table(sample).equals(expected)
    facts = sample.meta.sampling
    assert facts == {
        "gfn_hash": 0.3, "seed": 0, "unit_pages": 512, "rows_before": 5000, "faults_before": 5000,
        "faults_kept": expected.height, "stall_before_ns": 500_000, "stall_kept_ns": 100 * expected.height,
        "pages_before": 5000, "pages_kept": expected.height,
    }  # fmt: skip
    assert (report.rows, report.rows_before, sample.meta.rows) == (expected.height, 5000, expected.height)
    with pytest.raises(UsageError, match="sample already"):
        compact(sample.path, tmp_path / "z.trace", sample=0.5)


def test_larger_samples_hold_the_smaller_ones_and_seeds_differ() -> None:
    vm, block = np.zeros(20_000, np.uint64), np.arange(20_000, dtype=np.uint64)
    value = hashed(vm, block, seed=3)
    assert abs(np.mean(value < 0.1) - 0.1) < 0.01
    assert abs(np.corrcoef(value[:-1], value[1:])[0, 1]) < 0.03  # neighbours are independent
    assert abs(np.corrcoef(value, hashed(vm, block, seed=4))[0, 1]) < 0.03
    assert abs(np.corrcoef(value, hashed(vm + np.uint64(1), block, seed=3))[0, 1]) < 0.03


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 3000), st.integers(1, 3000), st.integers(0, 50), st.booleans())
def test_a_long_row_is_cut_to_the_sampled_blocks(first: int, pages: int, seed: int, by_hva: bool) -> None:
    """Every page of the row is in the sample exactly if its block is."""
    places = {"hva": HVA + first * 4096} if by_hva else {"gfn": first, "hva": HVA + first * 4096}
    slots = pl.DataFrame(
        {
            "vm": [0],
            "slot": [0],
            "gpa": [0],
            "size_bytes": [GIB],
            "hva": [HVA],
            "from_ns": [0],
            "to_ns": [None],
        }
    )
    sampler = Sampler(0.5, seed, MemslotMap(slots))
    twice = {name: [value, value] for name, value in places.items()}
    batch = events_batch(ts_ns=[5, 6], kind="madvise", pages=[pages, 1], arg=4, **twice)
    out = sampler.thin(batch)
    got = []
    for hva, size in zip(out.column("hva").to_pylist(), out.column("pages").to_pylist(), strict=True):
        got += range((hva - HVA) // 4096, (hva - HVA) // 4096 + size)
    if not by_hva:
        assert [(hva - HVA) // 4096 for hva in out.column("hva").to_pylist()] == out.column("gfn").to_pylist()
    pages_of = np.array([*range(first, first + pages), first], np.uint64)
    inside = hashed(np.zeros(len(pages_of), np.uint64), pages_of // np.uint64(BLOCK_PAGES), seed) < 0.5
    assert got == pages_of[inside].tolist()


def test_what_has_no_block(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="share above 0"):
        Sampler(0)
    nowhere = events_batch(ts_ns=[1, 2], kind=["hypercall", "vcpu_block"])
    assert Sampler(1e-9).thin(nowhere).num_rows == 2
    own = events_batch(ts_ns=np.arange(1000), kind="host_fault", hva=np.arange(1000) << 21)
    sampler = Sampler(0.2)
    assert 100 < sampler.thin(own).num_rows < 300  # by host address
    assert sampler.faults == 0  # not the guest's memory


def test_a_fault_is_never_cut() -> None:
    """What it maps comes and goes with the block of its own page, next to a row that is cut."""
    both = events_batch(
        ts_ns=[1, 2], kind=["ept_violation", "madvise"], gfn=[0, 0], pages=[512 * 512, 1024], level=3, arg=4
    )
    for seed in range(8):
        out = Sampler(0.5, seed).thin(both).to_pydict()
        sizes = dict(zip(out["kind"], out["pages"], strict=True))
        inside = hashed(np.zeros(2, np.uint64), np.arange(2, dtype=np.uint64), seed) < 0.5
        assert ("ept_violation" in sizes) == bool(inside[0])
        assert sizes.get("ept_violation", 512 * 512) == 512 * 512
        assert out["kind"].count("madvise") == inside.sum()


def test_rebasing_leaves_no_name_and_no_real_address(tmp_path: Path) -> None:
    second = HVA + 2 * GIB + (5 << 21)
    whole = write(
        tmp_path / "x.trace", ts_ns=[1, 2, 3], kind="host_fault",
        hva=[HVA + 8191, second + 4096, 0x5555_0000],
        gfn=[1, (4 * GIB >> 12) + 1, 0], gva=[0xFFFF_8000_1234_0000] * 3, rip=[0xFFFF_FFFF_8100_0000] * 3,
        latency_ns=7, valid={"gfn": np.array([True, True, False])},
    )  # fmt: skip
    compact(whole.path, tmp_path / "y.trace", rebase=True)
    bare = open_trace(tmp_path / "y.trace")
    text = "".join(file.read_bytes().decode("latin-1") for file in bare.path.rglob("*") if file.is_file())
    assert "secret" not in text
    assert "db7" not in text
    assert bare.meta.vms == [{"vcpus": 1, "page_bytes": 4096}]
    assert bare.meta.filters == {"pids": True}  # that it was attached to is a fact that replays need
    rows, slots = table(bare), bare.memslots
    assert rows["gva"].null_count() == rows["rip"].null_count() == 3
    assert rows["gfn"].to_list() == table(whole)["gfn"].to_list()
    assert rows["latency_ns"].to_list() == [7, 7, 7]
    assert not set(slots["hva"]) & set(whole.memslots["hva"])
    assert [a % GIB for a in slots["hva"]] == [b % GIB for b in whole.memslots["hva"]]
    places = MemslotMap(slots)
    gfn, known = places.gfn_of_hva(rows["hva"].drop_nulls().to_numpy(), ts_ns=1)
    assert known.all()
    assert gfn.tolist() == rows["gfn"].to_list()[:2]
    assert rows["hva"].to_list()[2] is None  # in no slot
    assert rows["hva"].to_list()[0] % 4096 == 4095


def test_slots_that_share_memory_still_share_it() -> None:
    slots = pl.DataFrame(
        {"vm": [0, 0, 0], "slot": [0, 1, 2], "gpa": [0, GIB, 8 * GIB], "size_bytes": [GIB, GIB // 2, 4096],
         "hva": [HVA, HVA + GIB // 2, HVA + 9 * GIB], "from_ns": [0, 0, 0], "to_ns": [None] * 3},
        schema_overrides={"hva": pl.UInt64()},
    )  # fmt: skip
    moved = Rebase(slots).memslots["hva"].to_list()
    assert moved[1] - moved[0] == GIB // 2
    assert moved[2] >= moved[0] + GIB
