"""KSM against answers computed by hand (in the comments); all costs are 1 us, faults take 5 ns."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.replay_kit import Tiny, alloc, costs, drop, fault, metrics, replayed
from tracekit.errors import UsageError
from tracekit.trace.schema import PAGE_BYTES

GIB_S = (1 << 30) / PAGE_BYTES  # page-seconds in one GiB*s
S = 1_000_000  # us


def found(rows: list[dict[str, Any]], scenario: str, span_s: float) -> dict[str, dict[str, Any]]:
    trace = Tiny(rows, span_us=round(span_s * S))
    return metrics(replayed(trace, scenario, profile=costs()), scenario)


def ksm(us: float, gfn: int, kind: str = "merge") -> dict[str, Any]:
    return {"us": us, "kind": f"ksm_{kind}", "gfn": gfn}


def test_pages_that_share_one_physical_page_need_that_one() -> None:
    rows = [fault(10, page, 0.005) for page in range(4)]
    rows += [ksm(1 * S, page) | {"arg": 77} for page in range(3)]
    rows += [fault(1.5 * S, 2, 0.005, write=False, present=True), fault(2 * S, 0, 0.005, present=True)]
    rows += [drop(3 * S, 1), ksm(4 * S, 2, "break")]
    figure = found(rows, "ksm", 5)["resident_time"]
    # Three share one page from 1 s: 2 saved. A read changes nothing; a write gives page 0 its own at 2 s: 1
    # saved, until page 1 goes at 3 s.
    assert figure["saved"] * GIB_S == pytest.approx(2 + 1, rel=1e-6)
    assert figure["low"] == figure["high"] == figure["saved"]


def test_a_page_that_merges_again_elsewhere_had_its_own_in_between() -> None:
    rows = [fault(10, page, 0.005) for page in range(2)]
    # ksmd takes page 0 for the first of two, cannot merge page 1 with it, undoes that without a word, and
    # merges both as physical page 78 later; that they are merged with it is said once more, and of no page.
    rows += [ksm(1 * S, 0) | {"arg": 77}, ksm(2 * S, 0) | {"arg": 78}, ksm(2 * S, 1) | {"arg": 78}]
    rows += [ksm(3 * S, 0) | {"arg": 78}, ksm(3 * S, 1)]
    figure = found(rows, "ksm", 5)["resident_time"]
    # Nothing is saved by one page alone; two share one from 2 s to 5 s.
    assert figure["saved"] * GIB_S == pytest.approx(3, rel=1e-6)


def read(us: float, gfn: int) -> dict[str, Any]:
    return fault(us, gfn, 0.005, write=False)


def test_recorded_merges_and_breaks_are_exact() -> None:
    rows = [fault(10, page, 0.005) for page in range(3)]
    rows += [ksm(1 * S, 0), ksm(2 * S, 1), ksm(5 * S, 0, "break"), drop(6 * S, 1)]
    row = found(rows, "ksm,sleep_ms=1000,pages_to_scan=2", 8)
    # Page 0 shares from 1 to 5 s; page 1 from 2 s until it is discarded at 6 s: 4 + 4 page-seconds.
    figure = row["resident_time"]
    assert figure["saved"] * GIB_S == pytest.approx(8, rel=1e-6)
    assert figure["low"] == figure["high"] == figure["saved"]
    assert figure["label"] == "measured"
    assert row["faults"]["saved"] == 0
    # At the end two pages are resident: 8 rounds of two pages of 1 us.
    assert row["host_cpu_background"]["saved"] == -16_000


def test_pages_read_but_never_written_merge_on_the_second_look() -> None:
    # Four pages in the order of their gfns; ksmd looks at 2 a second: 0, 1 at 1 s; 2, 3 at 2 s; 0, 1
    # again at 3 s (merged); 2, 3 at 4 s. Page 3 is written: 0 and 1 share one page from 3 s, 2 too from 4 s.
    rows = [read(10, 0), read(11, 1), read(12, 2), fault(13, 3, 0.005)]
    row = found(rows, "ksm,policy=zero,pages_to_scan=2,sleep_ms=1000", 10)
    figure = row["resident_time"]
    assert figure["saved"] * GIB_S == pytest.approx(7 + 6, rel=1e-6)
    assert (figure["low"], figure["label"]) == (0, "assumed")
    # 4 rounds of two pages; then page 3 is the only one left that is not merged: 6 rounds of one.
    assert row["host_cpu_background"]["saved"] == -14_000


def test_a_write_needs_a_page_of_its_own_again() -> None:
    rows = [read(10, 0), read(11, 1), fault(5 * S, 0, 0.005, present=True), alloc(6 * S, 1)]
    row = found(rows, "ksm,policy=zero,pages_to_scan=2,sleep_ms=1000", 10)
    # Both merge at 2 s. The write to page 0 at 5 s is a fault in the recording too; the allocation of page 1
    # at 6 s is not: one fault more, of 5 ns.
    assert row["resident_time"]["saved"] * GIB_S == pytest.approx(3, rel=1e-6)
    assert row["refaults"]["saved"] == row["faults"]["saved"] == -1
    assert row["stall"]["saved"] == -5


def test_the_rest_of_a_huge_page_is_zero_until_it_is_allocated() -> None:
    rows = [alloc(5, 7), fault(10, 0, 0.3, level=2)]
    row = found(rows, "ksm,policy=zero,pages_to_scan=512,sleep_ms=1000", 4)
    # All are looked at at 1 s and merge at 2 s, but page 0 (written) and 7 (allocated): 510 on 2 pages, 2 s.
    assert row["resident_time"]["saved"] * GIB_S == pytest.approx(1016, rel=1e-6)


def test_a_page_that_is_dropped_is_not_saved_twice() -> None:
    rows = [read(10, 0), read(11, 1), drop(3 * S, 0)]
    row = found(rows, "ksm,policy=zero,pages_to_scan=2,sleep_ms=1000", 10)
    # Both share from 2 s; when one goes there is nothing to share any more.
    assert row["resident_time"]["saved"] * GIB_S == pytest.approx(1, rel=1e-6)
    # With cold_hint's oracle the page goes at its last use, 10 us: ksmd finds nothing to merge.
    rows = [read(10, 0), read(11, 1)]
    both = "cold_hint+ksm,cold_hint.policy=oracle,ksm.policy=zero,pages_to_scan=1,sleep_ms=1000"
    figure = found(rows, both, 10)["resident_time"]
    assert figure["high"] * GIB_S <= 20


def test_recorded_merges_must_be_in_the_trace() -> None:
    with pytest.raises(UsageError, match="ksm_merge"):
        found([fault(1, 1)], "ksm", 1)


def test_the_new_mechanisms_agree_compiled_and_plain() -> None:
    rows = [alloc(1, page) for page in range(8)]
    rows += [fault(10 + page, page, 5, major=page % 3 == 0, write=page % 2 == 0) for page in range(8)]
    rows += [{"us": 100 + page, "kind": "page_free", "gfn": page, "vcpu": 0} for page in range(4)]
    rows += [{"us": 200 + page, "kind": "access", "gfn": page % 7, "vcpu": 0, "arg": 1} for page in range(20)]
    rows += [alloc(60_000, 1), drop(70_000, 2), fault(80_000, 2, 9, major=True), ksm(90_000, 5)]
    trace = Tiny(rows, span_us=100_000)
    scenarios = [
        f"balloon+epf+swap,epf.runnable=1,limit_mib={5 / 256},free_mib=0,interval_s=0.01",
        "ksm,policy=zero,sleep_ms=1",
        "ksm",
        "balloon,policy=recorded",
    ]
    plain = replayed(trace, *scenarios, plain=True)
    assert plain.rows.equals(replayed(trace, *scenarios, plain=False).rows)
    assert plain.rows.filter(plain.rows["metric"] == "refaults")["counterfactual"].max() > 0


def test_what_breaks_recorded_merges_is_in_the_recording() -> None:
    rows = [fault(10, page, 0.005) for page in range(2)]
    rows += [ksm(1 * S, page) | {"arg": 77} for page in range(2)]
    rows += [alloc(2 * S, 0), fault(3 * S, 0, 0.005, present=True)]
    row = found(rows, "ksm", 5)
    # The guest writes what it was given at 3 s only: until then the two share one page.
    assert row["resident_time"]["saved"] * GIB_S == pytest.approx(2, rel=1e-6)
    assert (row["faults"]["baseline"], row["faults"]["saved"], row["refaults"]["saved"]) == (3, 0, 0)


def test_a_merge_of_no_known_page_is_none() -> None:
    rows = [fault(10, page, 0.005) for page in range(2)]
    rows += [{"us": 20, "kind": "ksm_merge", "gfn": None, "pages": 3}]
    rows += [ksm(1 * S, page) | {"arg": 78} for page in range(2)]
    figure = found(rows, "ksm", 5)["resident_time"]
    # Two share one page from 1 s to 5 s, whatever page came first.
    assert figure["saved"] * GIB_S == pytest.approx(4, rel=1e-6)
