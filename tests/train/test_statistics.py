"""Intervals cover what they say, and do not collapse where they must not."""

from __future__ import annotations

import itertools
import math
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icrl.errors import DataError, MissingExtraError
from icrl.train.statistics import bootstrap_interval, mean_interval, seeds_interval, wilson_interval


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    # Values of Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_reproduces_published_values(successes, n, low, high):
    assert wilson_interval(successes, n) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_contains_the_proportion_and_mirrors(pair):
    k, n = pair
    low, high = wilson_interval(k, n)
    assert 0.0 <= low <= k / n <= high <= 1.0
    assert high > low
    assert wilson_interval(n - k, n) == pytest.approx((1 - high, 1 - low))


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (-1, 3), (4, 3)])
def test_wilson_refuses_nonsense(successes, n):
    with pytest.raises(DataError, match=f"{successes} successes of {n} trials"):
        wilson_interval(successes, n)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30))
def test_bootstrap_stays_within_the_values_and_repeats(values):
    low, high = bootstrap_interval(values, resamples=100)
    slack = 1e-9 * (1 + max(map(abs, values)))
    assert min(values) - slack <= low <= high <= max(values) + slack
    assert bootstrap_interval(values, resamples=100) == (low, high)


def test_bootstrap_agrees_with_the_normal_theory_of_a_mean():
    values = np.random.default_rng(1).normal(3.0, 2.0, 500).tolist()
    low, high = bootstrap_interval(values)
    half = 1.96 * float(np.std(values)) / math.sqrt(500)
    mean = float(np.mean(values))
    assert (low, high) == pytest.approx((mean - half, mean + half), abs=0.1 * half)


def test_bootstrap_covers_the_true_mean_about_as_often_as_it_says():
    draws = np.random.default_rng(2)
    hits = 0
    for _ in range(200):
        low, high = bootstrap_interval(draws.exponential(1.0, 60).tolist(), resamples=300)
        hits += low <= 1.0 <= high
    assert 0.88 <= hits / 200 <= 0.99


def test_mean_interval_chooses_by_the_values():
    assert mean_interval([1.0] * 20) == wilson_interval(20, 20)
    assert mean_interval([0.5, 1.0, 0.0]) == bootstrap_interval([0.5, 1.0, 0.0])


@pytest.mark.parametrize("interval", [bootstrap_interval, mean_interval, seeds_interval])
def test_no_values_have_no_interval(interval):
    with pytest.raises(DataError, match="there are no values"):
        interval([])


def test_seeds_interval_is_students():
    assert seeds_interval([1.0, 2.0]) == pytest.approx((1.5 - 6.353, 1.5 + 6.353))
    assert seeds_interval([0.5]) == (-math.inf, math.inf)


def test_seeds_interval_continues_smoothly_beyond_its_table():
    widths = []
    for count in (30, 31, 32, 33):
        values = [0.0, 1.0] * 40
        low, high = seeds_interval(values[:count])
        widths.append(high - low)
    assert all(0.94 < later / earlier < 1.01 for earlier, later in itertools.pairwise(widths))


def test_without_numpy_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "numpy", None)
    with pytest.raises(MissingExtraError, match=r"icrl\[search\]"):
        bootstrap_interval([0.5])
