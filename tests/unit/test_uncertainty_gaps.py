"""Censored gaps: pairing by hand and against a slow reference, Kaplan-Meier against the truth."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracekit.replay.uncertainty import Gaps, gaps_of, returned_within


def test_kaplan_meier_sees_through_the_end_of_the_trace() -> None:
    """Pages taken at uniform times of a 600 s trace; lognormal gaps with median 59.5 s and sigma 1.527.

    P(gap <= 60 s) is 0.502; using only completed gaps gives 0.620, counting the others as never 0.482.
    At 300 s the three are 0.856, 0.969 and 0.753.
    """
    rng = np.random.default_rng(60)
    n, end = 100_000, 600e9
    gap = np.exp(rng.normal(np.log(59.5e9), 1.527, n))
    taken = rng.uniform(0, end, n)
    back = taken + gap
    seen = back <= end
    page = np.arange(n)
    found = gaps_of(
        np.concatenate([page, page[seen]]),
        np.concatenate([taken, back[seen]]),
        np.concatenate([np.ones(n, bool), np.zeros(seen.sum(), bool)]),
        int(end),
    )
    assert len(found.observed) == seen.sum()
    assert len(found.censored) == n - seen.sum()
    at = (60e9, 300e9)
    for (value, interval), truth in zip(returned_within(found, at), (0.502, 0.856), strict=True):
        assert value == pytest.approx(truth, abs=0.006)
        assert interval.low is not None
        assert interval.high is not None
        assert interval.low - 0.002 <= truth <= interval.high + 0.002
        assert interval.high - interval.low < 0.012
    for within, completed, never in ((60e9, 0.620, 0.482), (300e9, 0.969, 0.753)):
        assert np.mean(found.observed <= within) == pytest.approx(completed, abs=0.006)
        assert np.sum(found.observed <= within) / n == pytest.approx(never, abs=0.006)


def test_pairing_by_hand() -> None:
    # page 1: taken 10, used 25 -> 15; taken 40, taken again 50 (away already), used 70 -> 30
    # page 2: used 5 (unknown before), taken 60, never back -> censored 100 - 60 = 40
    # page 3: taken 0 and 20 (away already), never back -> censored 100
    # page 4: used 1, used 2: unknown once, no gap
    events = [
        (1, 10, 1), (1, 25, 0), (1, 40, 1), (1, 50, 1), (1, 70, 0),
        (2, 5, 0), (2, 60, 1),
        (3, 0, 1), (3, 20, 1),
        (4, 1, 0), (4, 2, 0),
    ]  # fmt: skip
    shuffled = np.random.default_rng(1).permutation(events)
    found = gaps_of(shuffled[:, 0], shuffled[:, 1], shuffled[:, 2], 100)
    assert sorted(found.observed) == [15, 30]
    assert sorted(found.censored) == [40, 100]
    assert found.unknown == 2


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), max_size=60))
def test_pairing_equals_a_loop(events: list[tuple[int, bool]]) -> None:
    since: dict[int, int | None] = {}
    observed, unknown = [], 0
    for t, (page, away) in enumerate(events):
        if away:
            if since.get(page) is None:
                since[page] = t
        elif page not in since:
            unknown += 1
            since[page] = None
        elif (start := since[page]) is not None:
            observed.append(t - start)
            since[page] = None
    censored = [len(events) - t for t in since.values() if t is not None]
    pages = np.array([page for page, _ in events], np.int64)
    found = gaps_of(pages, np.arange(len(events)), np.array([away for _, away in events], bool), len(events))
    assert sorted(found.observed) == sorted(observed)
    assert sorted(found.censored) == sorted(censored)
    assert found.unknown == unknown


def test_the_ends_of_the_curve_are_honest() -> None:
    gaps = Gaps(np.array([10.0, 20.0, 30.0, 40.0]), np.array([50.0]), unknown=3)
    (none, early), (_, late) = returned_within(gaps, [5, 1000])
    assert (none, early.low) == (0, 0)
    assert early.high == pytest.approx(1 - 0.025 ** (1 / 5))  # Clopper-Pearson, 0 of 5
    assert late.high == 1.0
    assert "longer than 50" in late.note
    ((everything, interval),) = returned_within(Gaps(np.arange(1.0, 9.0), np.empty(0), 0), 100)
    assert everything == 1
    assert interval.low is not None
    assert 0.2 < interval.low < 1


def test_no_gaps_at_all() -> None:
    ((value, interval),) = returned_within(gaps_of([], [], [], 100), 5)
    assert (value, interval.low, interval.high, interval.note) == (0, None, None, "no page was taken away")
    ((_, interval),) = returned_within(Gaps(np.empty(0), np.array([3.0]), 0), 5)
    assert interval.note == "no page came back"
