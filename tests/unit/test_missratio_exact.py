"""Stack distances and policies against slow and obvious references, and against numbers done by hand."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit import missratio_naive as naive
from tracekit.errors import UsageError
from tracekit.replay.missratio import (
    FILLED,
    FORGET,
    HIT,
    TOUCH,
    Belady,
    Clock,
    Fifo,
    Lru,
    StackDistances,
    belady,
    limit_curve,
    policies,
    stackdistance,
)

POLICIES: list[tuple[type[Any], Callable[[Sequence[int], Sequence[int], int], naive.Counts]]] = [
    (Lru, naive.lru),
    (Fifo, naive.fifo),
    (Clock, naive.clock),
    (Belady, naive.belady),
]


@st.composite
def references(draw: st.DrawFn) -> tuple[list[int], list[int], list[int]]:
    """Pages, operations and where the batches end."""
    top = draw(st.integers(0, 30))
    pages = draw(st.lists(st.integers(0, top), max_size=250))
    some = draw(st.sampled_from([[TOUCH], [TOUCH, TOUCH, TOUCH, FORGET], [TOUCH, FORGET]]))
    ops = draw(st.lists(st.sampled_from(some), min_size=len(pages), max_size=len(pages)))
    cuts = sorted(draw(st.lists(st.integers(0, len(pages)), max_size=4)))
    return pages, ops, [0, *cuts, len(pages)]


@settings(max_examples=100, deadline=None)
@given(references())
def test_one_pass_is_lru_at_every_size(string: tuple[list[int], list[int], list[int]]) -> None:
    pages, ops, cuts = string
    distances = StackDistances()
    for begin, end in pairwise(cuts):
        distances.feed(pages[begin:end], ops[begin:end])
        distances._compact()
    sizes = range(1, 33)
    curve = distances.curve(list(sizes))
    for size, ratio in zip(sizes, curve.miss_ratio, strict=True):
        misses, cold = naive.lru(pages, ops, size)
        assert (round(ratio * max(curve.references, 1)), curve.cold) == (misses, cold)


@settings(max_examples=100, deadline=None)
@given(references(), st.integers(1, 20), st.sampled_from(POLICIES))
def test_policies_are_what_their_definitions_say(
    string: tuple[list[int], list[int], list[int]], capacity: int, policy: tuple[type[Any], Any]
) -> None:
    pages, ops, cuts = string
    make, reference = policy
    with mock.patch.object(policies, "LEAST_SLOTS", 64), mock.patch.object(belady, "LEAST_SLOTS", 64):
        memory = make(capacity)
        for begin, end in pairwise(cuts):
            memory.feed(pages[begin:end], ops[begin:end])
    assert (memory.misses, memory.cold) == reference(pages, ops, capacity)
    assert memory.references == ops.count(TOUCH)


@settings(max_examples=60, deadline=None)
@given(references(), st.integers(1, 20))
def test_no_policy_beats_belady_and_more_memory_never_hurts_lru(
    string: tuple[list[int], list[int], list[int]], capacity: int
) -> None:
    pages, ops, _ = string
    best = Belady(capacity).feed(pages, ops).misses
    assert all(make(capacity).feed(pages, ops).misses >= best for make in (Lru, Fifo, Clock))
    assert Belady(capacity + 1).feed(pages, ops).misses <= best
    curve = StackDistances().feed(pages, ops).curve(np.arange(32))
    assert (np.diff(curve.miss_ratio) <= 0).all()


def test_mattsons_distances_by_hand() -> None:
    # use      1  2  3  2  1  4  4  3
    # distance -  -  -  2  3  -  1  4   (distinct pages since the last use, itself included)
    distances = StackDistances().feed([1, 2, 3, 2, 1, 4, 4, 3])
    assert distances.histogram.tolist() == [4, 1, 1, 1, 1]
    # misses: 8 at 0 pages, then one fewer per size
    curve = distances.curve([0, 1, 2, 3, 4, 99])
    assert (curve.miss_ratio * 8).tolist() == [8, 7, 6, 5, 4, 4]
    assert (curve.references, curve.cold, curve.label, curve.band) == (8, 4, "measured", "exact")


def test_a_page_given_back_leaves_a_free_frame_by_hand() -> None:
    # 2 frames: 1 2 in, 3 evicts 1; 3 given back frees a frame; 1 fills it (miss), 2 is still there (hit).
    # 1 frame: 1 2 3 each evict; 3 given back; 1, then 2: all miss. 3 frames: 1 and 2 both hit.
    pages, ops = [1, 2, 3, 3, 1, 2], [TOUCH, TOUCH, TOUCH, FORGET, TOUCH, TOUCH]
    curve = StackDistances().feed(pages, ops).curve([1, 2, 3])
    assert (curve.miss_ratio * 5).round(9).tolist() == [5, 4, 3]
    assert [Lru(c).feed(pages, ops).misses for c in (1, 2, 3)] == [5, 4, 3]


def test_beladys_anomaly_is_fifos() -> None:
    # The textbook string: FIFO misses 9 times with 3 frames and 10 times with 4.
    pages = [1, 2, 3, 4, 1, 2, 5, 1, 2, 3, 4, 5]
    assert [Fifo(c).feed(pages).misses for c in (3, 4)] == [9, 10]
    assert [Lru(c).feed(pages).misses for c in (3, 4)] == [10, 8]
    assert [Belady(c).feed(pages).misses for c in (3, 4)] == [7, 6]


def test_outcomes_name_the_victim() -> None:
    pages, ops = [4, 5, 4, 6, 6, 7, 5], [0, 0, 0, 0, FORGET, 0, 0]
    # 4 5 fill; 4 hits; 6 evicts (LRU 5, FIFO 4); 6 given back; 7 fills its frame; 5 …
    assert Lru(2).outcomes(pages, ops).tolist() == [FILLED, FILLED, HIT, 5, HIT, FILLED, 4]
    assert Fifo(2).outcomes(pages, ops).tolist() == [FILLED, FILLED, HIT, 4, HIT, FILLED, HIT]
    assert Belady(2).missed(pages, ops).tolist() == [True, True, False, True, False, True, False]
    memory = Lru(2)
    outcome = memory.outcomes(pages, ops)
    assert (outcome >= 0).sum() == 2
    assert (memory.resident, memory.misses, memory.refaults) == (2, 5, 1)


def test_five_million_references_renumber_the_axis_and_change_nothing() -> None:
    pages = naive.mixed(5_000_011, 40_009, seed=3)
    whole = StackDistances().feed(pages)
    parts = StackDistances()
    for begin in range(0, len(pages), 700_001):
        parts.feed(pages[begin : begin + 700_001])
    assert len(parts._axis.words) << 6 < len(pages)  # so it was renumbered on the way
    assert (whole.histogram == parts.histogram).all()
    assert whole.histogram.sum() == len(pages)
    for size in (1_009, 10_007, 39_989):
        ratio = whole.curve(size).miss_ratio[0]
        assert Lru(size).feed(pages).misses == round(ratio * len(pages))


def test_kernels_as_plain_python_do_the_same() -> None:
    pages = naive.mixed(3_001, 300, seed=5).tolist()
    ops = [FORGET if i % 13 == 0 else TOUCH for i in range(len(pages))]

    def answers() -> list[Any]:
        distances = StackDistances(300).feed(pages, ops)
        distances._compact()
        distances.feed(pages, ops)
        found: list[Any] = [distances.histogram.tolist()]
        for make, _ in POLICIES:
            memory = make(97).feed(pages, ops)
            found.append((memory.misses, memory.cold, memory.references))
        return found

    fast = answers()
    queue_kernels = (policies.run_lru, policies.run_fifo, policies.renumber)
    with (
        mock.patch.object(
            stackdistance, "_kernels", return_value=(stackdistance.advance, stackdistance.renumber)
        ),
        mock.patch.object(policies, "_kernels", return_value=queue_kernels),
        mock.patch.object(belady, "_kernels", return_value=(belady.run_belady, belady.renumber)),
        mock.patch.object(policies, "LEAST_SLOTS", 64),
        mock.patch.object(belady, "LEAST_SLOTS", 64),
        np.errstate(over="ignore"),
    ):
        assert answers() == fast


def test_a_limits_band_holds_its_value() -> None:
    pages = naive.looping(20_011, 701, seed=2)
    sizes = [1, 50, 233, 300, 701]
    frame = limit_curve(pages, sizes).frame()
    assert frame.columns == ["capacity_pages", "miss_ratio", "low", "high", "label", "band"]
    assert (frame["low"] <= frame["miss_ratio"]).all()
    assert (frame["miss_ratio"] <= frame["high"]).all()
    assert frame["low"][2] < 0.8 * frame["miss_ratio"][2]  # a loop is where LRU is far from the optimum
    assert frame["miss_ratio"][4] == frame["low"][4] == 701 / 20_011


def test_nothing_is_a_curve_too() -> None:
    curve = StackDistances().feed([]).curve([0, 5])
    assert (curve.references, curve.miss_ratio.tolist()) == (0, [0, 0])
    assert Lru(3).feed([]).misses == Belady(3).feed([]).misses == 0
    assert StackDistances().feed([7]).histogram.tolist() == [1]


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: StackDistances().feed([1, -2]), "dense"),
        (lambda: StackDistances().feed(np.array([1 << 63], np.uint64)), "dense"),
        (lambda: StackDistances().feed([0.5]), "whole numbers"),
        (lambda: StackDistances().feed([[1]]), "one array"),
        (lambda: StackDistances().feed([1, 2], [0]), "2 pages but 1"),
        (lambda: Lru(2).feed([1], [2]), "operation 2"),
        (lambda: Lru(0), "memory of 0"),
        (lambda: Belady(0), "memory of 0"),
        (lambda: StackDistances().curve([-1]), "memory size of -1"),
    ],
)
def test_wrong_input_says_what_to_do(call: Callable[[], object], says: str) -> None:
    with pytest.raises(UsageError, match=says) as error:
        call()
    assert error.value.hint


def test_importing_costs_no_compiler() -> None:
    code = "import sys, tracekit.replay.missratio; print('numba' in sys.modules, 'polars' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split() == ["False", "False"]
