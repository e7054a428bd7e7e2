"""The offset between two clocks, estimated from a simulated guest whose truth is known."""

from dataclasses import replace

import numpy as np
import pytest

from tracekit.errors import FailedError
from tracekit.trace.offset import ContradictedError, Offset, PageEvents, Touches, estimate_offset

SECOND = 1_000_000_000


def simulate(
    offset,
    *,
    drift_ppm=0.0,
    seed=0,
    pages=8_000,
    seconds=10.0,
    wrong=0.0,
    recycled=0.3,
    boot=5.0,
    zeroing=0.5,
    in_faults=False,
):
    """Simulate pages in host time, then tell the guest's side by the guest's clock.

    Every page is allocated (half of them zeroed, in_faults: in a fault of the guest's own),
    touched, perhaps freed and allocated again. A share was touched before the guest's recording began, and
    `wrong` of the touches are not first ones (the page was there before and came back from swap).
    """
    random = np.random.default_rng(seed)
    begin = 1000 * SECOND
    events = []  # (host time, gfn, alloc, zeroed)
    touches = []  # (gfn, start, end)
    for gfn in range(pages):
        at = begin + int(random.uniform(-boot, seconds) * SECOND)
        touched = False
        for _ in range(1 + int(random.geometric(1 - recycled)) % 4):
            zeroed = bool(random.random() < zeroing)
            fault = int(random.lognormal(8, 0.5))
            if not touched and random.random() < 0.9:
                start = at + (-fault - 900 if zeroed else int(random.lognormal(8, 1.5)))
                if random.random() < wrong:
                    start += int(random.uniform(0, 2) * SECOND)
                touches.append((gfn, start, start + fault))
                touched = True
            elif zeroed and not touched:
                continue
            events.append((at, gfn, True, zeroed, fault + 2000))
            freed = at + int(random.exponential(1.0) * SECOND) + 200_000
            events.append((freed, gfn, False, False, 0))
            at = freed + int(random.exponential(0.3) * SECOND) + 200_000
    host = np.array([event[0] for event in events])
    guest = np.rint((host - offset - begin) / (1 + drift_ppm * 1e-6)).astype(np.int64) + begin
    first, last = begin - offset if not drift_ppm else int(guest[np.argmin(abs(host - begin))]), None
    inside = (host >= begin) & (host < begin + seconds * SECOND)
    first, last = int(guest[inside].min()) - 1, int(guest[inside].max()) + 1
    columns = [np.array([event[at] for event in events])[inside] for at in (1, 2, 3)]
    began = guest[inside] - np.array([event[4] for event in events])[inside]
    columns.append(np.where(columns[2] & bool(in_faults), began, 0))
    seen = PageEvents(
        columns[0].astype(np.uint64),
        guest[inside],
        columns[1].astype(bool),
        columns[2].astype(bool),
        columns[3].astype(np.uint64),
        first,
        last,
    )
    told = np.array(sorted(touches))
    return Touches(told[:, 0].astype(np.uint64), told[:, 1], told[:, 2]), seen


@pytest.mark.parametrize("offset", [0, 123_456_789_012, -987 * SECOND])
@pytest.mark.parametrize("seed", range(2))
def test_the_interval_holds_the_truth_and_is_narrow(offset, seed):
    found = estimate_offset(*simulate(offset, seed=seed))
    assert found.low_ns <= offset <= found.high_ns
    assert found.low_ns <= found.offset_ns <= found.high_ns
    assert found.high_ns - found.low_ns < 50_000
    assert found.drift_ppm == 0
    assert found.pairs > 1000
    assert not found.given


@pytest.mark.parametrize("wrong", [0.01, 0.1])
def test_touches_that_are_not_first_ones_are_outvoted_and_counted(wrong):
    found = estimate_offset(*simulate(5 * SECOND, wrong=wrong, seed=4))
    assert found.low_ns <= 5 * SECOND <= found.high_ns
    assert found.high_ns - found.low_ns < 100_000
    assert found.contradicting > 0


@pytest.mark.parametrize("seed", range(3))
def test_pages_that_the_recorder_itself_used_do_not_pull_the_offset_away(seed):
    """It leaves its own allocations out: pages that others freed are then touched while free, it seems."""
    touches, seen = simulate(0, pages=600, seconds=2.0, boot=0.0, seed=seed)
    random = np.random.default_rng(seed)
    own = np.arange(1 << 20, (1 << 20) + 3000, dtype=np.uint64)
    freed = random.integers(seen.start_ns, seen.stop_ns, len(own))
    start = freed + random.integers(1_000, SECOND // 2, len(own))
    none = np.zeros(len(own), bool)
    found = estimate_offset(
        Touches(
            *(np.concatenate(c) for c in ((touches.gfn, own), (touches.start, start), (touches.end, start)))
        ),
        PageEvents(
            np.concatenate([seen.gfn, own]),
            np.concatenate([seen.ts, freed]),
            np.concatenate([seen.alloc, none]),
            np.concatenate([seen.zeroed, none]),
            np.concatenate([seen.began, none]),
            seen.start_ns,
            seen.stop_ns,
        ),
    )
    assert found.low_ns <= 0 <= found.high_ns
    assert found.high_ns - found.low_ns < 1_000_000


@pytest.mark.parametrize("drift_ppm", [-200.0, 40.0])
def test_clocks_that_run_at_different_speeds(drift_ppm):
    offset = 3 * SECOND
    touches, pages = simulate(offset, drift_ppm=drift_ppm, pages=20_000, seed=5)
    found = estimate_offset(touches, pages)
    assert found.drift_ppm == pytest.approx(drift_ppm, abs=5)
    guest = pages.ts
    truth = (
        np.rint((guest - 1000 * SECOND) * (1 + drift_ppm * 1e-6)).astype(np.int64) + 1000 * SECOND + offset
    )
    error = np.abs(found.to_host(guest).astype(np.int64) - truth)
    assert error.max() <= (found.high_ns - found.low_ns) + 10_000


def test_reports_of_free_pages_narrow_it_where_nothing_is_zeroed():
    touches, pages = simulate(7 * SECOND, seed=6)
    frees = ~pages.alloc
    reports = (pages.gfn[frees], pages.ts[frees] + 7 * SECOND + 50_000)
    found = estimate_offset(touches, pages, reports)
    assert found.low_ns <= 7 * SECOND <= found.high_ns


def test_where_every_page_is_zeroed_the_faults_they_were_allocated_for_bound_it():
    """Debian's kernels initialise all they hand out: no page is first touched after its page_alloc."""
    with pytest.raises(FailedError, match="both sides"):
        estimate_offset(*simulate(5 * SECOND, zeroing=1.0, recycled=0.0, seed=3))
    found = estimate_offset(*simulate(5 * SECOND, zeroing=1.0, recycled=0.0, in_faults=True, seed=3))
    assert found.low_ns <= 5 * SECOND <= found.high_ns
    assert found.high_ns - found.low_ns < 10_000


def test_events_that_contradict_each_other_are_refused():
    """Said to be zeroed or not as if by chance: the most likely offset would be narrow, and wrong."""
    touches, pages = simulate(5 * SECOND, zeroing=1.0, recycled=0.0, in_faults=True, seed=3)
    half = replace(pages, zeroed=pages.gfn % 2 == 0)
    with pytest.raises(ContradictedError, match="contradict"):
        estimate_offset(touches, half)


def test_traces_of_two_different_guests_are_refused():
    touches, _ = simulate(0, seed=7)
    random = np.random.default_rng(8)
    shuffled = Touches(touches.gfn, touches.start[random.permutation(len(touches.gfn))], touches.end)
    with pytest.raises(FailedError, match="no offset stands out") as refused:
        estimate_offset(shuffled, simulate(0, seed=9)[1])
    assert "--offset-ns" in refused.value.hint
    other = Touches(touches.gfn + np.uint64(10**9), touches.start, touches.end)
    with pytest.raises(FailedError, match="no page"):
        estimate_offset(other, simulate(0, seed=9)[1])


def test_moving_guest_times_to_the_host():
    assert Offset(100, None, None, given=True).to_host(np.array([1, 2], np.uint64)).tolist() == [101, 102]
    drifting = Offset(100, 90, 110, drift_ppm=1000.0, at_ns=10_000)
    assert drifting.to_host(np.array([10_000, 20_000], np.uint64)).tolist() == [10_100, 20_110]
    with pytest.raises(FailedError, match="before the start"):
        Offset(-100, None, None, given=True).to_host(np.array([5], np.uint64))


def test_what_is_known_of_the_clocks_tells_two_peaks_apart():
    """Every page is given out twice, the second time just two seconds after the first; odd ones zeroed."""
    gfn = np.arange(500)
    at = 1000 * SECOND + gfn * 1_000_000
    zeroed = gfn % 2 == 1
    start = np.where(zeroed, at - 3000, at + 1000)
    touches = Touches(gfn, start, start + 2000)
    pages = PageEvents(
        np.tile(gfn, 3),
        np.concatenate([at, at + SECOND, at + 2 * SECOND]),
        np.repeat([True, False, True], len(gfn)),
        np.concatenate([zeroed, zeroed & False, zeroed]),
        np.zeros(3 * len(gfn), np.int64),
        int(at[0]) - 1,
        int(at[-1]) + 3 * SECOND,
    )
    with pytest.raises(FailedError, match="no offset stands out"):
        estimate_offset(touches, pages)
    found = estimate_offset(touches, pages, within_ns=5_000_000)
    assert -1000 <= found.low_ns <= 0 <= found.high_ns <= 1000
