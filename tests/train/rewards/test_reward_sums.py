"""Weighted sums, efficiency, and rewards by name."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from judged import TASK, asked, reply, tagged, trajectory

from icrl.errors import ConfigError, DataError, MissingExtraError, RewardError
from icrl.train.rewards import (
    EfficientReward,
    MathMatcher,
    Part,
    ProgramMatcher,
    QuestionReward,
    Score,
    WeightedReward,
    checked,
    find_reward,
    overlap,
    robust,
    same_set,
    strict,
)
from icrl.train.rewards.selection import REWARDS


def constant(value, **components):
    return lambda trajectory, task: Score(total=value, components=components)


def part(name, weight=1.0, value=1.0, **components) -> Part:
    return Part(name=name, weight=weight, reward=constant(value, **components))


async def total(*parts: Part) -> float:
    return (await WeightedReward(parts=parts)(trajectory(), TASK)).total


numbers = st.floats(-8, 8)


@given(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=5), numbers)
async def test_a_weighted_sum_is_linear_in_weights_and_rewards(pairs, factor):
    parts = [part(f"p{i}", weight, value) for i, (weight, value) in enumerate(pairs)]
    plain = math.fsum(weight * value for weight, value in pairs)
    assert await total(*parts) == pytest.approx(plain, abs=1e-9)
    heavier = [part(f"p{i}", factor * weight, value) for i, (weight, value) in enumerate(pairs)]
    larger = [part(f"p{i}", weight, factor * value) for i, (weight, value) in enumerate(pairs)]
    assert await total(*heavier) == pytest.approx(factor * plain, abs=1e-9)
    assert await total(*larger) == pytest.approx(factor * plain, abs=1e-9)


async def test_components_are_logged_unweighted_under_the_names_of_parts_and_their_own():
    question = Part(name="question", weight=2.0, reward=QuestionReward(well_formed=tagged))
    score = await checked(WeightedReward(parts=(question, part("long", -0.25, 4.0))))(trajectory(), TASK)
    assert score.total == pytest.approx(2 * 0.9 - 1)
    assert score.components == {"question": 0.9, "em": 1.0, "format": 0.0, "long": 4.0}


@pytest.mark.parametrize(
    "parts",
    [
        (part("a", em=1.0), part("b", em=0.0)),
        (part("em", em=1.0),),
        (part("a", b=1.0), part("b")),
        (part("b"), part("a", b=1.0)),
    ],
)
async def test_components_that_would_hide_each_other_are_refused(parts):
    with pytest.raises(RewardError, match=r"reports '(em|b)', a name that is taken"):
        await total(*parts)


async def test_a_part_that_fails_is_named():
    with pytest.raises(RewardError, match="bad: trajectory t0: total must be a finite number, not nan"):
        await total(part("good"), part("bad", value=math.nan))


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: WeightedReward(parts=()), "parts: there are none"),
        (lambda: WeightedReward(parts=(part("a"), part("b"), part("a"))), "parts: 2 of them are called 'a'"),
        (lambda: part("", 1.0), "name: is empty"),
        (lambda: part("a", math.inf), "weight: that of 'a' must be a finite number, not inf"),
        (lambda: EfficientReward(reward=constant(1.0), penalty=-0.1), "penalty: must be a finite number >= 0"),
        (lambda: EfficientReward(reward=constant(1.0), penalty=0.1, bound=math.nan), "bound: must be a finite"),
        (lambda: EfficientReward(reward=constant(1.0), penalty=0.1, needed=-1), "needed: must be >= 0"),
    ],
)
def test_settings_are_checked(make, problem):
    with pytest.raises(ConfigError, match=problem):
        make()


async def test_sums_and_shaping_close_what_they_hold():
    class Holder:
        closed = 0

        def __call__(self, trajectory, task):
            return Score(total=1.0, components={"em": 1.0})

        async def aclose(self):
            self.closed += 1

    holder = Holder()
    shaped = EfficientReward(reward=holder, penalty=0.1)
    await WeightedReward(parts=(Part(name="a", reward=shaped), part("b"))).aclose()
    assert holder.closed == 1


async def shaped(calls: int, em: float = 1.0, task=TASK, **fields) -> Score:
    reward = EfficientReward(reward=constant(em, em=em), penalty=0.05, **fields)
    return await reward(trajectory("113", reply("x", calls)), task)


@pytest.mark.parametrize(("calls", "paid"), [(0, 1.0), (1, 1.0), (2, 0.95), (4, 0.85), (5, 0.8), (16, 0.8)])
async def test_needless_calls_cost_a_bounded_part_of_a_right_answer(calls, paid):
    score = await shaped(calls)
    assert score.total == pytest.approx(paid)
    assert score.components == {"em": 1.0, "excess_calls": max(0.0, calls - 1.0)}


@given(st.integers(0, 20), st.integers(0, 20))
async def test_fewer_calls_never_pay_less_and_a_wrong_answer_loses_nothing(one, other):
    few, many = sorted((one, other))
    assert (await shaped(few)).total >= (await shaped(many)).total > 0
    assert (await shaped(many, em=0.0)).total == 0.0


async def test_a_task_may_say_how_many_calls_it_needs():
    assert (await shaped(4, task=asked("113", needed_calls=3))).total == pytest.approx(0.95)
    assert (await shaped(4, needed=4)).total == 1.0
    for wrong in (-1, True, "3", 2.0):
        with pytest.raises(DataError, match=r"metadata\.needed_calls: must be a whole number >= 0"):
            await shaped(4, task=asked("113", needed_calls=wrong))


async def test_shaping_needs_to_know_whether_the_answer_is_right():
    with pytest.raises(RewardError, match="has to report the component 'em'"):
        await EfficientReward(reward=constant(1.0), penalty=0.1)(trajectory(), TASK)


def never():
    raise AssertionError("no executor is needed")


def found(name, **options):
    return find_reward(name, well_formed=tagged, **{"executor": never, **options})


@pytest.mark.parametrize(
    ("name", "matcher"), [("question", strict), ("f1", overlap), ("robust", robust), ("set", same_set)]
)
def test_plain_rewards_by_name(name, matcher):
    assert found(name).match is matcher


async def test_rewards_with_processes_by_name():
    math_verify = pytest.importorskip("math_verify")
    reward = found("math")
    assert math_verify
    assert isinstance(reward.match, MathMatcher)
    await reward.aclose()
    sandbox = object()
    assert found("programs", executor=lambda: sandbox).match == ProgramMatcher(executor=sandbox)


def test_math_by_name_without_its_package(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"icrl\[math\]"):
        found("math")


async def test_every_named_reward_reports_whether_the_answer_is_right():
    task = asked("113", tests=[{"stdout": "113"}])
    for name in set(REWARDS) - {"programs"}:
        reward = found(name, em_weight=0.5, format_weight=0.25)
        score = await checked(reward)(trajectory("113", reply("<answer>")), task)
        assert (score.total, score.components["em"], score.components["format"]) == (0.75, 1.0, 1.0), name


async def test_shaping_is_off_unless_it_is_asked_for():
    assert isinstance(found("question"), QuestionReward)
    score = await checked(found("question", call_penalty=0.05))(trajectory("113", reply("x", 3)), TASK)
    assert score.total == pytest.approx(0.8)
    assert score.components["excess_calls"] == 2.0


async def test_a_users_own_reward_by_name():
    reward = found("rewards_of_a_user:length")
    assert await checked(reward)(trajectory(), TASK) is not None


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(ConfigError, match=r"'robst' is not one of question, .*module:name.*Did you mean 'robust'\?"):
        found("robst")
