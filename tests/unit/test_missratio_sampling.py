"""SHARDS: its distance from the exact curve, whether its band holds, and what a very hot page does."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.unit import missratio_naive as naive
from tracekit.errors import UsageError
from tracekit.replay.missratio import FORGET, Shards, StackDistances, mean_absolute_error, sampling

PAGES = 100_003
USES = 500_009
SEEDS = range(8)


def hot(n: int, pages: int, seed: int) -> NDArray[np.int64]:
    """Every third use is of one page."""
    uses = naive.mixed(n, pages, seed)
    uses[::3] = 12_345
    return uses


WORKLOADS = {
    "zipf": lambda n, pages, seed: naive.zipf(n, pages, 1.0, seed),
    "mixed": naive.mixed,
    "looping": naive.looping,
    "hot": hot,
}


@pytest.mark.parametrize("name", WORKLOADS)
def test_error_and_band_over_seeds(name: str) -> None:
    uses = WORKLOADS[name](USES, PAGES, 1)
    exact = StackDistances().feed(uses)
    top = len(exact.histogram) - 1
    sizes = np.unique(np.linspace(1, top, 400).round().astype(np.int64))
    truth = exact.curve(sizes)
    errors, inside = [], []
    for seed in SEEDS:
        sample = Shards(rate=0.05, seed=seed).feed(uses)
        errors.append(mean_absolute_error(sample.curve(np.arange(top)), exact.curve(np.arange(top)), top))
        curve = sample.curve(sizes)
        inside.append(((curve.low <= truth.miss_ratio) & (truth.miss_ratio <= curve.high)).mean())
        assert (curve.low <= curve.miss_ratio).all()
        assert (curve.miss_ratio <= curve.high).all()
        assert curve.cold == truth.cold
        assert curve.miss_ratio[-1] == pytest.approx(truth.miss_ratio[-1], abs=0.01)
    # 5,000 sampled pages: an error of 1/sqrt(5,000) = 1.4 % of the ratio would be nothing unusual.
    assert np.mean(errors) < 0.007
    assert np.max(errors) < 0.014
    assert np.mean(inside) >= 0.95


def test_a_hot_page_in_or_out_of_the_sample_changes_little_and_is_said() -> None:
    uses = hot(USES, PAGES, 1)
    exact = StackDistances().feed(uses)
    top = len(exact.histogram) - 1
    seen = {True: 0, False: 0}
    for seed in range(200):
        is_in = sampling.mixed(12_345, seed) < 0.05 * sampling.SPACE
        if seen[is_in] == 3:
            continue
        seen[is_in] += 1
        sample = Shards(rate=0.05, seed=seed).feed(uses)
        curve = sample.curve(np.arange(top))
        assert (sample.hottest_share > 0.5) is is_in
        assert any("one page holds" in note for note in curve.notes) is is_in
        assert any("were expected" in note for note in curve.notes)
        assert mean_absolute_error(curve, exact.curve(np.arange(top)), top) < 0.014
    assert seen[True] == seen[False] == 3


def test_rate_one_is_exact() -> None:
    uses = naive.mixed(50_021, 4_001, seed=8)
    ops = np.where(np.arange(len(uses)) % 11 == 0, FORGET, 0)
    exact = StackDistances().feed(uses, ops)
    sample = Shards(rate=1.0).feed(uses, ops)
    sizes = np.arange(1, 4_002)
    assert np.allclose(sample.curve(sizes).miss_ratio, exact.curve(sizes).miss_ratio)
    assert sample.sampled == sample.references == exact.references
    assert sample.curve().cold == exact.curve().cold


def test_batches_do_not_matter() -> None:
    uses = naive.zipf(300_007, 50_021, 0.9, seed=4)
    whole = Shards(rate=0.3, seed=5).feed(uses)
    parts = Shards(rate=0.3, seed=5)
    for begin in range(0, len(uses), 9_973):
        parts.feed(uses[begin : begin + 9_973])
    assert (whole.curve([10, 1_000]).miss_ratio == parts.curve([10, 1_000]).miss_ratio).all()
    assert whole.sampled == parts.sampled
    assert whole.sampled == sum(sampling.mixed(int(u), 5) < whole.rate * sampling.SPACE for u in uses)


def test_kernels_as_plain_python_pick_the_same() -> None:
    uses = naive.mixed(4_001, 900, seed=6)
    ops = (np.arange(len(uses)) % 7 == 0).astype(np.uint8)
    for some in (None, ops):
        fast = Shards(rate=0.2, seed=9).feed(uses, some)
        plain = (sampling.count_cold, sampling.pick, sampling.enlarge)
        with mock.patch.object(sampling, "_kernels", return_value=plain), np.errstate(over="ignore"):
            slow = Shards(rate=0.2, seed=9).feed(uses.tolist(), some)
        assert fast.sampled == slow.sampled
        assert (fast.curve([5, 50, 500]).miss_ratio == slow.curve([5, 50, 500]).miss_ratio).all()


def test_no_sample_says_so_by_its_band() -> None:
    curve = Shards(rate=1e-6).feed([1, 2, 1]).curve([0, 1, 2])
    assert curve.miss_ratio.tolist() == [1, 1, 1]
    assert (curve.low.min() == 0) or curve.notes


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.5])
def test_wrong_rate(rate: float) -> None:
    with pytest.raises(UsageError, match="sampling rate"):
        Shards(rate=rate)
