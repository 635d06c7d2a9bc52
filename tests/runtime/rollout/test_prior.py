from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icrl.runtime.rollout.beta_binomial import chance_informative
from icrl.runtime.rollout.prior import ENOUGH, UNIFORM, WINDOW, RewardHistory, fit


def draws(a: float, b: float, groups: int, members: int, seed: int = 3) -> list[tuple[int, int]]:
    draw = random.Random(seed)
    chances = [draw.betavariate(a, b) for _ in range(groups)]
    return [(sum(draw.random() < p for _ in range(members)), members) for p in chances]


@pytest.mark.parametrize(("a", "b"), [(1.0, 1.0), (0.3, 0.3), (4.0, 0.5), (0.2, 1.8)])
def test_a_fit_finds_what_the_groups_were_drawn_from(a, b):
    fitted = fit(draws(a, b, groups=400, members=8))
    assert fitted[0] / sum(fitted) == pytest.approx(a / (a + b), abs=0.16)
    for finished, remaining in [(4, 4), (6, 2)]:
        wanted = chance_informative(finished, remaining, a=a, b=b)
        assert chance_informative(finished, remaining, a=fitted[0], b=fitted[1]) == pytest.approx(wanted, abs=0.12)


def test_groups_that_were_stopped_early_do_not_mislead_it():
    """Stopping all groups that agree after four members leaves the estimate where it was."""
    whole, stopped = [], []
    draw = random.Random(5)
    for _ in range(500):
        p = draw.betavariate(0.3, 0.3)
        members = [draw.random() < p for _ in range(8)]
        whole.append((sum(members), 8))
        first = sum(members[:4])
        stopped.append((first, 4) if first in (0, 4) else (sum(members), 8))
    assert chance_informative(4, 4, a=fit(stopped)[0], b=fit(stopped)[1]) == pytest.approx(
        chance_informative(4, 4, a=fit(whole)[0], b=fit(whole)[1]), abs=0.08
    )


def test_nothing_is_concluded_from_few_groups_or_from_rewards_never_seen():
    history = RewardHistory()
    for _ in range(ENOUGH - 1):
        history.add([1.0] * 8)
    assert history.prior(1.0) == UNIFORM
    for _ in range(2 * ENOUGH):
        history.add([1.0] * 8)
    assert history.prior(1.0) != UNIFORM
    assert history.prior(0.25) == UNIFORM


def test_old_groups_are_forgotten():
    history = RewardHistory()
    for _ in range(ENOUGH * 2):
        history.add([1.0] * 8)
    for _ in range(WINDOW):
        history.add([0.0, 0.5])
    assert history.prior(1.0) == UNIFORM


@settings(max_examples=20)
@given(st.lists(st.lists(st.sampled_from([0.0, 0.5, 1.0]), max_size=8), max_size=60))
def test_a_prior_is_always_a_distribution(groups):
    history = RewardHistory()
    for rewards in groups:
        history.add(rewards)
        assert all(min(history.prior(reward)) > 0 for reward in (0.0, 1.0))
