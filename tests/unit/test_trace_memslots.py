import numpy as np
import polars as pl

from tracekit.trace import MemslotMap
from tracekit.trace.schema import MEMSLOTS

PAGE = 4096


def frame(rows):
    names = MEMSLOTS.names
    full = [
        dict(zip(names, (vm, slot, gpa, size, hva, 0, t0, t1, "ioctl"), strict=True))
        for vm, slot, gpa, size, hva, t0, t1 in rows
    ]
    schema = {
        "vm": pl.UInt16,
        "slot": pl.UInt32,
        "gpa": pl.UInt64,
        "size_bytes": pl.UInt64,
        "hva": pl.UInt64,
        "flags": pl.UInt32,
        "from_ns": pl.UInt64,
        "to_ns": pl.UInt64,
        "known_by": pl.String,
    }
    return pl.DataFrame(full, schema=schema)


def slow_answer(rows, vm, address, ts, *, to_hva):
    best = None
    for v, _, gpa, size, hva, t0, t1 in sorted(rows, key=lambda row: row[5]):
        start, target = (gpa, hva) if to_hva else (hva, gpa)
        if v == vm and start <= address < start + size and t0 <= ts and (t1 is None or ts < t1):
            best = address - start + target
    return best


def test_thousands_of_random_look_ups_agree_with_a_slow_reference():
    random = np.random.default_rng(7)
    rows = []
    for at in range(40):
        size = int(random.integers(1, 20)) * PAGE
        t0 = int(random.integers(0, 100))
        t1 = None if random.random() < 0.3 else t0 + int(random.integers(0, 60))
        rows.append(
            (
                int(at % 2),
                at,
                int(random.integers(0, 60)) * PAGE,
                size,
                0x7F00_0000_0000 + int(random.integers(0, 60)) * PAGE,
                t0,
                t1,
            )
        )
    places = MemslotMap(frame(rows))
    gfn = random.integers(0, 90, 5000)
    ts = random.integers(0, 170, 5000)
    vm = random.integers(0, 3, 5000)
    hva, known = places.hva_of_gfn(gfn, ts_ns=ts, vm=vm)
    for g, t, v, h, k in zip(
        gfn.tolist(), ts.tolist(), vm.tolist(), hva.tolist(), known.tolist(), strict=True
    ):
        assert (h if k else None) == slow_answer(rows, v, g * PAGE, t, to_hva=True)
    addresses = 0x7F00_0000_0000 + random.integers(0, 90 * PAGE, 5000)
    found, known = places.gfn_of_hva(addresses, ts_ns=ts, vm=vm)
    for a, t, v, g, k in zip(
        addresses.tolist(), ts.tolist(), vm.tolist(), found.tolist(), known.tolist(), strict=True
    ):
        expected = slow_answer(rows, v, a, t, to_hva=False)
        assert (g if k else None) == (None if expected is None else expected // PAGE)
    assert 100 < known.sum() < 4900


def test_a_slot_that_was_removed_and_set_again_elsewhere():
    places = MemslotMap(frame([(0, 1, 0, PAGE, 0x1000, 10, 20), (0, 1, 0, PAGE, 0x9000, 30, None)]))
    hva, known = places.hva_of_gfn([0] * 5, ts_ns=[9, 10, 20, 30, 2**64 - 1])
    assert known.tolist() == [False, True, False, True, True]
    assert hva.tolist() == [0, 0x1000, 0, 0x9000, 0x9000]


def test_no_memslots_know_nothing():
    hva, known = MemslotMap(frame([])).hva_of_gfn([0, 1], ts_ns=0)
    assert hva.tolist() == [0, 0]
    assert not known.any()


def test_a_page_at_the_top_of_the_address_space():
    places = MemslotMap(frame([(0, 0, (2**52 - 1) * PAGE, PAGE, 0x5000, 0, None)]))
    assert places.hva_of_gfn([2**52 - 1], ts_ns=1)[0].tolist() == [0x5000]
    assert places.gfn_of_hva([0x5FFF], ts_ns=1)[0].tolist() == [2**52 - 1]


def test_slots_that_all_overlap_cost_n_log_n():
    """What a VMM may do to its recorder: one range inside another, thousands deep (of hvas KVM allows it)."""
    count = 3000
    rows = [(0, n, n * PAGE, (2 * count - 2 * n) * PAGE, n * PAGE, n, None) for n in range(count)]
    places = MemslotMap(frame(rows))
    index = places._by_hva[0]
    assert len(index._since) < 8 * count * np.log2(count)
    random = np.random.default_rng(3)
    addresses, times = random.integers(0, 2 * count * PAGE, 200), random.integers(0, count, 200)
    found, known = places.gfn_of_hva(addresses, ts_ns=times)
    for address, ts, gfn, there in zip(
        addresses.tolist(), times.tolist(), found.tolist(), known.tolist(), strict=True
    ):
        expected = slow_answer(rows, 0, address, ts, to_hva=False)
        assert (gfn if there else None) == (None if expected is None else expected // PAGE)
