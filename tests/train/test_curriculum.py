"""Schedules: caps, promotion, mixtures, exact continuation."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icrl.errors import CheckpointError, ConfigError
from icrl.train.curriculum import Stage, Stages, parse_stages


def drive(stages: Stages, successes) -> list[tuple[int, int]]:
    """Run a schedule and return (stage, shots of the first prompt) of each step."""
    seen = []
    for step, success in enumerate(successes):
        if stages.finished:
            break
        seen.append((stages.stage, stages.shots(step, 0, 1)))
        stages.record(step, success)
    return seen


def test_stages_run_to_their_caps_without_success():
    seen = drive(Stages("3:4,2:2,0:3"), [0.0] * 100)
    assert [shots for _, shots in seen] == [3] * 4 + [2] * 2 + [0] * 3


def test_a_mastered_stage_ends_after_its_window():
    stages = Stages("3:40,0:40", promote_at=0.9, window=5)
    seen = drive(stages, [0.95] * 100)
    assert [shots for _, shots in seen] == [3] * 5 + [0] * 5
    assert stages.finished


def test_steps_left_counts_down_and_jumps_on_promotion():
    stages = Stages("3:4,0:3", window=2)
    left = [stages.steps_left]
    for step, success in enumerate([0.0, 1.0, 1.0, 0.0, 0.0, 0.0]):
        stages.record(step, success)
        left.append(stages.steps_left)
    assert left == [7, 6, 5, 3, 2, 1, 0]


def test_the_mean_has_to_exceed_the_threshold():
    assert len(drive(Stages("3:10", promote_at=0.5, window=2), [0.5] * 20)) == 10


def test_success_of_an_earlier_stage_does_not_count():
    seen = drive(Stages("3:40,0:40", promote_at=0.9, window=3), [1.0] * 3 + [0.0, 1.0, 1.0, 1.0, 1.0])
    assert seen == [(0, 3)] * 3 + [(1, 0)] * 4


@pytest.mark.parametrize("schedule", ["0:60", "3:60", "3:5,0:45"])
def test_fixed_schedules_ignore_success(schedule):
    stages = Stages(schedule, promote_at=None)
    assert len(drive(stages, [1.0] * 200)) == stages.max_steps == sum(s.steps for s in stages.stages)


def test_what_a_schedule_says_of_itself():
    stages = Stages(" 3+5@.5:4 , 0:1")
    assert (stages.max_steps, stages.max_shots, stages.stage, stages.finished) == (5, 5, 0, False)
    drive(stages, [0.0] * 9)
    assert (stages.stage, stages.finished, stages.shots(5, 0, 1)) == (1, True, 0)
    with pytest.raises(ConfigError, match="was finished before step 5"):
        stages.record(5, 0.0)


@pytest.mark.parametrize(
    ("schedule", "problem"),
    [
        ("", "'' in '' is not shots:steps"),
        ("3", "'3' in '3' is not shots:steps"),
        ("3:40,,0:40", "'' in '3:40,,0:40' is not shots:steps"),
        ("3:40;0:40", "'3:40;0:40' in"),
        ("-1:4", "'-1:4' in"),
        ("3:0", "'3:0' has no steps"),
        ("3:x", "'3:x' in"),
        ("3+0:40", r"'+0' in '3+0:40' is not +shots@fraction"),
        ("3+0@25%:40", "'+0@25%' in"),
        ("3+0@2:40", "'+0@2' in"),
        ("3+0@0.5+1@0.5:40", "the fractions of '3+0@0.5+1@0.5:40' leave no prompt for 3 shots"),
    ],
)
def test_a_schedule_that_cannot_be_read_is_refused_with_its_part(schedule, problem):
    with pytest.raises(ConfigError) as raised:
        Stages(schedule)
    assert str(raised.value).startswith(f"schedule: {problem}")


@pytest.mark.parametrize(
    ("options", "name"),
    [({"promote_at": 1.0}, "promote_at"), ({"finish_at": 1.0}, "finish_at"), ({"window": 0}, "window")],
)
def test_options_are_checked(options, name):
    with pytest.raises(ConfigError, match=f"{name}: must be"):
        Stages("3:4", **options)


def test_mixtures_parse():
    assert parse_stages("3+0@0.25+1@0.25:7") == (Stage(mixture=((3, 0.5), (0, 0.25), (1, 0.25)), steps=7),)


fractions = st.lists(st.integers(1, 30).map(lambda k: k / 100), min_size=1, max_size=3)


@given(fractions, st.integers(1, 40), st.integers(0, 10**6))
def test_every_step_keeps_the_fractions_to_within_one_prompt(parts, n, step):
    stage = Stage(mixture=((9, 1 - sum(parts)), *enumerate(parts)), steps=1)
    counts = Counter(stage.shots(step, index, n) for index in range(n))
    for shots, fraction in stage.mixture:
        assert abs(counts[shots] - fraction * n) < 1 + 1e-6


@pytest.mark.parametrize("n", [1, 2, 3])
def test_small_fractions_of_few_prompts_come_up_over_the_steps(n):
    (stage,) = parse_stages("3+0@0.1:40")
    zero = sum(stage.shots(step, index, n) == 0 for step in range(400) for index in range(n))
    assert zero / (400 * n) == pytest.approx(0.1, abs=0.01)


schedules = st.lists(
    st.tuples(st.sampled_from(["3", "2+0@0.3", "0"]), st.integers(1, 6)).map(lambda s: f"{s[0]}:{s[1]}"),
    min_size=1,
    max_size=4,
).map(",".join)


@given(
    schedule=schedules,
    promote_at=st.none() | st.just(0.6),
    window=st.integers(1, 4),
    successes=st.lists(st.sampled_from([0.0, 0.5, 1.0, 1 / 3]), min_size=24, max_size=24),
    cut=st.integers(0, 23),
)
def test_restoring_at_any_step_continues_exactly(schedule, promote_at, window, successes, cut):
    def fresh():
        return Stages(schedule, promote_at=promote_at, window=window)

    def run(stages, steps):
        seen = []
        for step in steps:
            if stages.finished:
                break
            seen.append((step, stages.stage, [stages.shots(step, index, 3) for index in range(3)]))
            stages.record(step, successes[step])
        return seen

    whole = run(fresh(), range(24))
    first = fresh()
    begun = run(first, range(cut))
    second = fresh()
    second.restore(json.loads(json.dumps(first.state())))
    assert begun + run(second, range(cut, 24)) == whole


def test_the_state_of_another_schedule_is_refused():
    with pytest.raises(CheckpointError, match="the checkpoint is of schedule '3:4', not '3:5'"):
        Stages("3:5").restore(Stages("3:4").state())


@pytest.mark.parametrize("damage", [{"stage": None}, {"recent": 3}, {"steps": "x"}])
def test_a_damaged_state_is_refused(damage):
    with pytest.raises(CheckpointError, match="curriculum: the saved state is damaged"):
        Stages("3:4").restore({**Stages("3:4").state(), **damage})


def test_the_last_stage_may_ask_for_more():
    stages = Stages("3:40,0:40", promote_at=0.9, finish_at=0.95, window=1)
    for step, success in enumerate([0.93, 0.93, 0.94]):
        stages.record(step, success)
    assert (stages.stage, stages.finished) == (1, False)
    stages.record(3, 0.96)
    assert stages.finished


def test_fixed_stages_are_fixed_to_the_end():
    stages = Stages("0:3", promote_at=None, finish_at=0.5, window=1)
    stages.record(0, 1.0)
    assert not stages.finished
