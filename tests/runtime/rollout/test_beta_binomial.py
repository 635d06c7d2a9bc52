from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icrl.errors import ConfigError
from icrl.runtime.rollout.beta_binomial import chance_informative, log_beta

shape = st.floats(0.01, 50.0)
few = st.integers(0, 20)


@given(m=few, r=few)
def test_with_a_uniform_prior_it_is_the_rule_of_succession(m, r):
    assert chance_informative(m, r) == pytest.approx(r / (m + r + 1))


@given(m=few, r=few, a=shape, b=shape)
def test_it_is_one_less_a_ratio_of_beta_functions(m, r, a, b):
    agree = math.exp(log_beta(a + m + r, b) - log_beta(a + m, b))
    assert chance_informative(m, r, a=a, b=b) == pytest.approx(1 - agree, abs=1e-9)


@given(m=few, r=st.integers(1, 20), a=shape, b=shape)
def test_more_agreement_lowers_it_and_more_members_raise_it(m, r, a, b):
    chance = chance_informative(m, r, a=a, b=b)
    assert 0 < chance < 1 or b / (a + b + m) < 1e-12 or chance == pytest.approx(1)
    assert chance_informative(m + 1, r, a=a, b=b) <= chance
    assert chance_informative(m, r + 1, a=a, b=b) >= chance
    assert chance_informative(m, 0, a=a, b=b) == 0


@given(m=few, r=st.integers(1, 12), a=shape, b=shape)
def test_looking_one_member_ahead_changes_nothing(m, r, a, b):
    """P(one of r differs) = P(the next differs) + P(it agrees) P(one of the other r - 1 differs)."""
    differs = b / (a + b + m)
    ahead = differs + (1 - differs) * chance_informative(m + 1, r - 1, a=a, b=b)
    assert chance_informative(m, r, a=a, b=b) == pytest.approx(ahead, rel=1e-9)


def test_small_chances_keep_their_digits():
    assert chance_informative(4, 1, a=1.0, b=1e-14) == pytest.approx(1e-14 / 5, rel=1e-6)


@pytest.mark.parametrize(("a", "b", "m", "r"), [(1.0, 1.0, 4, 4), (0.3, 0.3, 3, 5), (4.0, 0.5, 6, 2), (0.5, 2.0, 2, 2)])
def test_it_is_what_drawing_groups_shows(a, b, m, r):
    """Draw a task's probability, then its members; among groups whose first m succeed, count where another fails."""
    draw = random.Random(11)
    kept = differs = 0
    while kept < 6000:
        p = draw.betavariate(a, b)
        if all(draw.random() < p for _ in range(m)):
            kept += 1
            differs += not all(draw.random() < p for _ in range(r))
    expected = chance_informative(m, r, a=a, b=b)
    assert differs / kept == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / kept))


@pytest.mark.parametrize(("m", "r", "a", "b"), [(-1, 1, 1, 1), (1, -1, 1, 1), (1, 1, 0, 1), (1, 1, 1, -2)])
def test_what_makes_no_sense_is_refused(m, r, a, b):
    with pytest.raises(ConfigError, match="members >= 0"):
        chance_informative(m, r, a=a, b=b)
