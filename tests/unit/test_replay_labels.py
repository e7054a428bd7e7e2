"""What a figure rests on: intervals and labels against answers computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from tests.unit.replay_kit import Tiny, alloc, costs, drop, fault, figure, free, metrics, ranged, replayed
from tracekit.datasets.catalog import trace_path
from tracekit.replay import run
from tracekit.replay.accounts import histogram_cells
from tracekit.replay.quantiles import moved, quantile
from tracekit.trace import open_trace
from tracekit.trace.schema import PAGE_BYTES

RESIDENT = ("resident_time", "resident_mean", "resident_peak")
MIB = 1 << 20

NO_FAULT = "prealloc,via=pre_fault"


def test_startup_weighs_its_range_and_label_into_the_critical_path() -> None:
    # One fault of 4 us goes; 4 pages are populated at 1 us each, or 0.5 to 2: startup 4 us (2 to 8). Closed
    # loop 4 - 4 = 0 (4 - 8 to 4 - 2); open loop saves nothing on the path: 0 - 8 is the low end.
    trace = Tiny([fault(10, 1, 4)], memory_pages=4, span_us=100)
    profile = ranged(prefault_4k=(1_000, 500, 2_000))
    found = metrics(replayed(trace, NO_FAULT, profile=profile), NO_FAULT)
    path = found["critical_path"]
    assert (path["low"], path["saved"], path["high"]) == (-8_000, 0, 2_000)
    assert path["label"] == "assumed"
    assert (found["startup"]["low"], found["startup"]["high"]) == (-8_000, -2_000)


def test_prices_move_the_critical_path_as_far_as_the_stall() -> None:
    # Two faults of 4 us become one of 50 us (40 to 90): stall 8 - 50 = -42 (-82 to -32), on one vCPU. Nothing
    # of it may show on the path (open loop: 0 and its spread of -40 to +10).
    profile = ranged(ept_2m=(50_000, 40_000, 90_000))
    found = metrics(
        replayed(Tiny([fault(100, 0, 4), fault(200, 1, 4)], span_us=300), "hugepages", profile=profile),
        "hugepages",
    )
    stall, path = found["stall"], found["critical_path"]
    assert (stall["low"], stall["saved"], stall["high"]) == (-82_000, -42_000, -32_000)
    assert path["saved"] == -42_000
    assert path["low"] <= -82_000
    # The stretch of the fault that went (4 us) counts in full where all vCPUs wait for each other: 4 + 10.
    assert path["high"] == 14_000
    assert path["label"] == stall["label"] == "assumed"


def test_residency_lies_between_closed_and_open_loop() -> None:
    # Page 1's fault was made by zeroing it (never used after): skipped, 4 us gained. Page 3 comes at 70 us in
    # an open loop, at 66 in a closed one, and stays to the end (100 us; 96 us): 30 page·us either way.
    # Page 1 saved 100 - 20 = 80. Page 9 on vCPU 1 (no gain, so the end of the trace stays at 100 us).
    rows = [free(2, 1), fault(20, 1, 4), fault(70, 3, 4), alloc(60, 3)]
    rows += [alloc(40, 9, vcpu=1), fault(50, 9, 4, vcpu=1)]
    row = figure(Tiny(rows, span_us=100), "zeroing", "resident_time", profile=costs())
    unit = PAGE_BYTES / 2**30 * 1e-6
    # Closed loop: page 3 is resident from 66 to 100 us: 34 where 30 were recorded; 80 - 4 = 76. Open: 80.
    assert row["saved"] == pytest.approx(76 * unit)
    assert (row["low"], row["high"]) == (pytest.approx(76 * unit), pytest.approx(80 * unit))
    assert row["label"] == "bounded"


def test_what_the_trace_leaves_open_is_open_in_both_loops() -> None:
    # Two first touches of 4 us, and 1 us of the guest's zeroing after each, if they were zeroing at all. In a
    # closed loop all is earlier by at most 10 us, by 8 if nothing was zeroed. In an open one by the zeroing
    # alone: 2 us, or nothing.
    trace, name = Tiny([fault(100, 1, 4), fault(200, 2, 4)], span_us=300), f"zeroing+{NO_FAULT}"
    profile = costs(prefault_4k=0, guest_zero_4k=1000)
    found = {}
    for closed in (True, False):
        row = figure(trace, name, "critical_path", profile=profile, closed_loop=closed)
        found[closed] = (row["saved"], row["low"], row["high"])
    assert found == {True: (10_000, 0, 10_000), False: (2_000, 0, 10_000)}


def test_the_recording_itself_stays_measured() -> None:
    found = metrics(replayed(Tiny([fault(10, 1, 4)], span_us=100)), "baseline")
    assert {found[name]["label"] for name in (*RESIDENT, "stall", "critical_path")} == {"measured"}


def test_prefaults_at_an_assumed_price_make_residency_assumed() -> None:
    trace = Tiny([fault(100, 1, 4)], span_us=200)
    found = metrics(replayed(trace, "hot_hint,lead_ms=0.05", profile=costs()), "hot_hint,lead_ms=0.05")
    assert found["resident_time"]["label"] == found["resident_mean"]["label"] == "assumed"


def test_a_recording_of_a_running_vm_may_lack_what_was_mapped_before() -> None:
    rows = [fault(10, 1, 4), fault(20, 2, 4), drop(60, 1)]
    late = {"pids": [7]}
    trace = Tiny(rows, memory_pages=4096, span_us=100, filters=late, rss_bytes=3 * MIB)
    result = replayed(trace, "baseline", NO_FAULT, profile=costs(prefault_4k=0))
    base, full = metrics(result, "baseline"), metrics(result, NO_FAULT)
    assert all(base[name]["label"] == "bounded" for name in RESIDENT)
    assert base["stall"]["label"] == "measured"
    # Nothing is saved with nothing on; prealloc finds up to 3 MiB there already.
    assert base["resident_mean"]["high"] == 0
    peak = full["resident_peak"]
    assert peak["saved"] == 2 * PAGE_BYTES - 16 * MIB
    assert peak["high"] == peak["saved"] + 3 * MIB
    assert any(note.startswith("768 pages may have been mapped before") for note in result.about["notes"])


def test_without_samples_only_the_guests_memory_bounds_what_was_mapped_before() -> None:
    late = {"pids": [7]}
    found = figure(Tiny([fault(10, 1)], span_us=100, filters=late), NO_FAULT, "resident_peak")
    assert found["high"] == found["saved"] + 16 * MIB
    trace = Tiny(
        [fault(10, 512, level=2), alloc(20, 512, pages=512), free(50, 512, pages=512)],
        memory_pages=None,
        span_us=100,
        filters=late,
    )
    result = replayed(trace, "free_page_reporting,from_mib=0", profile=costs())
    assert metrics(result, "free_page_reporting,from_mib=0")["resident_time"]["high"] is None
    assert any("an unknown number of pages" in note for note in result.about["notes"])


def test_guessed_memslots_weaken_whatever_names_pages() -> None:
    rows = [fault(10, 1, 4), fault(20, 2, 4)]
    result = replayed(Tiny(rows, known_by="assumed"), "baseline", NO_FAULT, profile=costs(prefault_4k=0))
    assert metrics(result, NO_FAULT)["faults"]["label"] == "assumed"
    assert metrics(result, "baseline")["resident_mean"]["label"] == "bounded"
    assert metrics(result, "baseline")["faults"]["label"] == "measured"  # a count needs no gfn
    assert any("memslots are assumed" in note for note in result.about["notes"])


def test_the_mean_of_other_faults_is_a_price_with_the_quartiles_as_its_range() -> None:
    # Recorded: 2, 4, 6 and 12 us (mean 6; first quartile 2, third 6). The fifth has no latency: 6 us, 2 to 6.
    rows = [fault(10 * k, k, us) for k, us in enumerate([2, 4, 6, 12, None], 1)]
    row = figure(Tiny(rows), NO_FAULT, "stall", profile=costs(prefault_4k=0))
    assert row["saved"] == 24_000 + 6_000
    # The edges of cells of 0.8 % (8 or 16 ns at 2 us, 32 ns at 6 us) hold the quartiles.
    assert 24_000 + 1_984 <= row["low"] <= 24_000 + 2_000
    assert 24_000 + 6_000 <= row["high"] <= 24_000 + 6_032
    assert row["label"] == "assumed"
    assert metrics(replayed(Tiny(rows)), "baseline")["stall"]["label"] == "assumed"


def test_a_shortened_fault_takes_what_its_price_ranges_over() -> None:
    # Hinted 1 us before the touch at 96 us, worked on for 3 us: ready at 98, 2 of 4 us saved. A worker that
    # takes 1.5 us is ready at 96.5: 3.5 us saved; one that takes 6 us, at 101: after the fault would be over.
    name = "hot_hint,lead_ms=0.001,via=pre_fault"
    profile = ranged(prefault_4k=(3_000, 1_500, 6_000), hypercall=(0, 0, 0))
    row = figure(Tiny([fault(100, 1, 4)]), name, "stall", profile=profile)
    assert (row["low"], row["saved"], row["high"]) == (0, 2_000, 3_500)
    assert row["label"] == "assumed"


def test_prices_move_what_is_resident_too() -> None:
    # The fault that maps 2 MiB takes 50 us, 40 to 90: 512 pages come up to 40 us later or 10 us earlier.
    profile = ranged(ept_2m=(50_000, 40_000, 90_000))
    row = figure(Tiny([fault(100, 0, 4)], span_us=1_000), "hugepages", "resident_time", profile=profile)
    unit = PAGE_BYTES / 2**30 * 1e-6
    assert row["high"] - row["saved"] >= 512 * 40 * unit * 0.999
    assert row["saved"] - row["low"] >= 512 * 10 * unit


def test_a_quantile_is_no_finer_than_its_cell() -> None:
    cells = np.bincount(histogram_cells(np.array([50, 5_000, 9_000])))
    assert quantile(cells, 0.1) == (50, 50)  # exact below 128 ns
    assert quantile(cells, 0.5) == (4_992, 5_023)  # 39/32 of 4096, 32 ns wide
    assert quantile(np.zeros(5, np.int64), 0.5) == (0, 0)
    later = moved(cells, np.array([1]), np.array([5_000]), np.array([9_000]))
    assert later.sum() == 3
    assert quantile(later, 0.5)[0] > 8_900
    rows = [fault(100, 1, 5), fault(200, None, 9)]
    row = figure(Tiny(rows), NO_FAULT, "stall_p50", profile=costs(prefault_4k=0))
    # 5 us (4992 to 5023) before; what remains is 9 us (8960 to 9023).
    assert (row["low"], row["saved"], row["high"]) == (4_992 - 9_023, 4_992 - 8_960, 5_023 - 8_960)
    assert row["label"] == "assumed"


def test_lost_events_make_every_recorded_count_a_lower_bound() -> None:
    found = metrics(replayed(Tiny([fault(10, 1, 4)], lost=3)), "baseline")
    assert {row["label"] for row in found.values()} == {"bounded"}
    assert found["faults"]["saved"] == found["faults"]["high"] == 0  # nothing on: nothing can be saved
    # A mechanism that found nothing to do may have had something to do in what was lost.
    untouched = figure(Tiny([fault(10, None, 4)], lost=3), NO_FAULT, "faults")
    assert (untouched["low"], untouched["saved"], untouched["high"]) == (-3, 0, 3)
    unknown = figure(Tiny([fault(10, None, 4)], lost=None), NO_FAULT, "faults")
    assert (unknown["low"], unknown["high"]) == (None, None)


def test_the_hosts_share_of_a_stall_is_at_most_the_stall() -> None:
    found = figure(Tiny([fault(10, 1, 4)]), NO_FAULT, "host_cpu_path", profile=costs(prefault_4k=0))
    assert (found["low"], found["saved"], found["high"], found["label"]) == (0, 4_000, 4_000, "assumed")


@pytest.mark.parametrize("scenario", ["zeroing", "epf,runnable=1", "hot_hint"])
def test_a_guest_alone_tells_nothing_of_what_its_host_would_save(scenario: str) -> None:
    trace = open_trace(trace_path("guest-side"))
    result = run(trace, ["baseline", scenario], plain=True)
    found = metrics(result, scenario)
    assert {(row["low"], row["high"]) for row in found.values()} == {(None, None)}
    assert not [row for row in result.rows["label"] if row == "measured"]
    (said,) = [note for note in result.about["notes"] if "inside the guest" in note]
    assert "tracekit merge" in said
    assert not [note for note in result.about["notes"] if "was lost" in note]
