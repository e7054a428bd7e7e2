"""Idle gaps and accessed bits: one sort equals a loop that acts; intervals hold the truth."""

from __future__ import annotations

from itertools import pairwise
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracekit.errors import UsageError
from tracekit.replay.missratio import ENDS, STARTS, USE, IdleGaps, accessed, accessed_bits, idle

Event = tuple[int, int, int]  # ts, page, mark


def acting(events: list[Event], delay: int, end: int) -> tuple[int, int, int, int, int]:
    """Take pages away once idle for longer than `delay`, event by event."""
    since: dict[int, int] = {}
    refaults = avoided = saved = 0
    for ts, page, mark in events:
        if mark & ENDS and page in since:
            gap = ts - since.pop(page)
            refaults += gap > delay
            avoided += gap <= delay
            saved += max(gap - delay, 0)
        if mark & STARTS:
            since.setdefault(page, ts)
    waits = [end - began for began in since.values()]
    return (
        refaults,
        avoided,
        saved,
        sum(w > delay for w in waits),
        sum(max(w - delay, 0) for w in waits),
    )


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 60), st.integers(0, 5), st.sampled_from([ENDS, STARTS, USE])), max_size=80
    ),
    st.lists(st.integers(0, 70), min_size=1, max_size=6),
    st.integers(0, 80),
)
def test_one_sort_answers_every_delay(events: list[Event], delays: list[int], cut: int) -> None:
    events = sorted(events, key=lambda event: event[0])
    ts, pages, marks = (list(column) for column in zip(*events, strict=True)) if events else ([], [], [])
    gaps = (
        IdleGaps().feed(pages[:cut], ts[:cut], marks[:cut]).feed(pages[cut:], ts[cut:], marks[cut:]).close(75)
    )
    rows = gaps.after(delays).frame().rows()
    assert rows == [(delay, *acting(events, delay, 75)) for delay in delays]


def test_by_hand() -> None:
    # Page 1 used at 0, 30, 130; page 2 at 10. Gaps 30 and 100; idle at 150 since 20 and 140.
    gaps = IdleGaps().feed([1, 2, 1, 1], [0, 10, 30, 130]).close(150)
    assert gaps.after(50).frame().rows() == [(50, 1, 1, 50.0, 1, 90.0)]
    # Working set for a window of 50: 30 + 50 of the gaps, 20 + 50 of the open ones, over 150.
    assert gaps.working_set(50, span_ns=150).tolist() == [150 / 150]
    assert gaps.unknown == 2


def test_sums_beyond_an_int64_are_exact() -> None:
    hours = 10 * 3600 * 10**9
    gaps = idle.SortedGaps(np.full(1 << 20, hours + 1), np.empty(0, np.int64), 0)
    assert gaps.after([1]).saved_page_ns[0] == float((1 << 20) * hours)  # 3.8e19 > 2**63


def test_collect_as_plain_python_does_the_same() -> None:
    rng = np.random.default_rng(3)
    pages, marks = rng.integers(0, 50, 2_003), rng.integers(1, 4, 2_003)
    ts = np.sort(rng.integers(0, 10**6, 2_003))
    fast = IdleGaps().feed(pages, ts, marks).close(10**6)
    with mock.patch.object(idle, "_kernel", return_value=idle.collect):
        slow = IdleGaps().feed(pages, ts, marks).close(10**6)
    assert (fast.ended == slow.ended).all()
    assert (fast.cut == slow.cut).all()
    assert fast.unknown == slow.unknown


@pytest.mark.parametrize("period", [100, 37])
def test_accessed_bits_hold_the_truth(period: int) -> None:
    rng = np.random.default_rng(period)
    end = period * 200
    pages = rng.integers(0, 300, 30_011)
    ts = np.sort(rng.integers(1, end + 1, 30_011))
    delays = np.array([period // 3, period - 1, period, 2 * period, 5 * period, 10 * period, 30 * period])
    truth = IdleGaps().feed(pages, ts).close(end).after(delays)
    found = np.unique(np.stack([(ts - 1) // period, pages]), axis=1)  # scan s sees (s P, (s + 1) P]
    answers = accessed_bits(found[1], found[0], np.arange(0, end + 1, period), delays)
    assert (answers.refaults_low <= truth.refaults).all()
    assert (truth.refaults <= answers.refaults_high).all()
    assert (answers.saved_page_ns_low <= truth.saved_page_ns).all()
    assert (truth.saved_page_ns <= answers.saved_page_ns_high).all()
    assert (answers.cut_low <= truth.cut).all()
    assert (truth.cut <= answers.cut_high).all()
    assert (answers.cut_page_ns_low <= truth.cut_page_ns).all()
    assert (truth.cut_page_ns <= answers.cut_page_ns_high).all()
    assert answers.coarse.tolist() == [True] * 5 + [False] * 2


def test_the_rule_of_the_brief_for_a_steady_period() -> None:
    # lower = pairs with (j - i - 1) P >= T, upper = pairs with (j - i + 1) P > T
    rng = np.random.default_rng(1)
    seen = rng.random((100, 40)) < 0.1
    scans, pages = np.nonzero(seen)
    period, asked = 10, np.array([20, 35, 50])
    distance = [
        later - earlier for page in range(40) for earlier, later in pairwise(np.flatnonzero(seen[:, page]))
    ]
    answers = accessed_bits(pages, scans, np.arange(0, 1001, period), asked)
    assert answers.refaults_low.tolist() == [sum((d - 1) * period >= t for d in distance) for t in asked]
    assert answers.refaults_high.tolist() == [sum((d + 1) * period > t for d in distance) for t in asked]
    with mock.patch.object(accessed, "_kernel", return_value=accessed.pair):
        slow = accessed_bits(pages, scans, np.arange(0, 1001, period), asked)
    assert slow.frame().equals(answers.frame())


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: IdleGaps().feed([1, 2], [5, 4]), "time order"),
        (lambda: IdleGaps().feed([1], [5]).feed([1], [4]), "time order"),
        (lambda: IdleGaps().feed([1], [5, 6]), "1 pages but 2"),
        (lambda: IdleGaps().feed([1], [5]).close(4), "ends before"),
        (lambda: accessed_bits([1], [0], [0], [5]), "must ascend"),
        (lambda: accessed_bits([1], [3], [0, 1], [5]), "number of scans"),
        (lambda: accessed_bits([1], [0], [0, 1], [0]), "above 0"),
        (lambda: accessed_bits([1, 2], [0], [0, 1], [5]), "2 pages but 1"),
    ],
)
def test_wrong_input_says_what_to_do(call: object, says: str) -> None:
    with pytest.raises(UsageError, match=says) as error:
        call()  # type: ignore[operator]
    assert error.value.hint
