"""Steps are handed out in order, and no more of them run ahead than is allowed."""

import asyncio
import threading
from types import SimpleNamespace

import pytest
from anyio.from_thread import start_blocking_portal

from icrl.train.curriculum import Stages
from icrl.train.pipeline import Pipeline
from icrl.train.source import RolloutSource
from icrl.trajectory import Group
from icrl.types import Task


class Rollouts:
    """Rolls out steps when it is told to, and remembers when they began."""

    def __init__(self):
        self.begun = []
        self.gates = {}
        self.changed = threading.Condition()

    async def __call__(self, step, stage):
        gate = asyncio.Event()
        with self.changed:
            self.begun.append(step)
            self.gates[step] = gate
            self.changed.notify_all()
        await gate.wait()
        if step == 13:
            raise ValueError("an unlucky step")
        return [Group(task=Task(query=str(step)), trajectories=(), rewards=())]

    def wait_for(self, step):
        with self.changed:
            assert self.changed.wait_for(lambda: step in self.gates, timeout=10)

    def finish(self, portal, step):
        self.wait_for(step)
        portal.call(self.gates[step].set)


@pytest.fixture
def portal():
    with start_blocking_portal() as portal:
        yield portal
        portal.call(portal.stop, True)  # or a test that fails would wait for steps that nobody ends


def pipeline(portal, rollouts, **kwargs):
    settings = {"stage": lambda begun: 0, "version": lambda: 0, "staleness": 0, "last": 9, **kwargs}
    return Pipeline(portal, rollouts, **settings)


def take(portal, rollouts, pipe, step):
    """Take a step whose rollouts end once they have begun."""
    finisher = threading.Thread(target=rollouts.finish, args=(portal, step))
    finisher.start()
    taken = pipe.take(step)
    finisher.join()
    return taken


def test_without_staleness_a_step_begins_when_it_is_asked_for(portal):
    rollouts = Rollouts()
    pipe = pipeline(portal, rollouts)
    for step in (1, 2):
        assert take(portal, rollouts, pipe, step).groups[0].task.query == str(step)
        pipe.overlap(step)
        assert rollouts.begun == list(range(1, step + 1))
    assert pipe.rest() == []


def test_the_next_step_runs_while_the_trainer_learns(portal):
    rollouts = Rollouts()
    pipe = pipeline(portal, rollouts, staleness=1)
    take(portal, rollouts, pipe, 1)
    assert rollouts.begun == [1]
    pipe.overlap(1)
    rollouts.wait_for(2)
    taken = take(portal, rollouts, pipe, 2)
    assert taken.groups[0].task.query == "2"
    assert taken.wall_s >= 0
    assert taken.wait_s >= 0


def test_no_more_steps_run_ahead_than_allowed_and_none_beyond_the_last(portal):
    rollouts = Rollouts()
    pipe = pipeline(portal, rollouts, staleness=3, last=4)
    take(portal, rollouts, pipe, 1)
    rollouts.wait_for(3)  # it may begin after the first has ended
    assert sorted(rollouts.begun) == [1, 2, 3]
    pipe.overlap(1)
    rollouts.wait_for(4)
    take(portal, rollouts, pipe, 2)
    pipe.overlap(2)
    for step in (3, 4):
        rollouts.finish(portal, step)
    assert [group.task.query for group in pipe.rest()] == ["3", "4"]
    assert sorted(rollouts.begun) == [1, 2, 3, 4]


def test_a_step_belongs_to_the_stage_in_which_it_began(portal):
    rollouts, stages = Rollouts(), [0]
    pipe = pipeline(portal, rollouts, staleness=1, stage=lambda begun: stages[0])
    take(portal, rollouts, pipe, 1)
    pipe.overlap(1)
    stages[0] = 1
    assert take(portal, rollouts, pipe, 2).stage == 0
    assert take(portal, rollouts, pipe, 3).stage == 1


@pytest.mark.parametrize("staleness", [0, 1, 3])
def test_every_stage_has_its_steps_however_far_rollouts_run_ahead(portal, staleness):
    rollouts, stages = Rollouts(), Stages("3:4,2:1,0:3", promote_at=None)
    pipe = pipeline(portal, rollouts, staleness=staleness, stage=stages.stage_after, last=stages.max_steps)
    seen = []
    for step in range(1, stages.max_steps + 1):
        seen.append(take(portal, rollouts, pipe, step).stage)
        assert seen[-1] == stages.stage
        stages.record(step, 0.0)
        pipe.overlap(step)
    assert (seen, stages.finished) == ([0, 0, 0, 0, 1, 2, 2, 2], True)


def test_a_stage_that_is_mastered_early_passes_over_what_was_begun_in_it(portal):
    rollouts, stages = Rollouts(), Stages("3:9,0:3", promote_at=0.5, finish_at=0.99, window=1)
    pipe = pipeline(portal, rollouts, staleness=3, stage=stages.stage_after, last=6)
    seen = []
    for step in range(1, 7):
        seen.append(take(portal, rollouts, pipe, step).stage)
        if seen[-1] == stages.stage:
            stages.record(step, 0.9)
        pipe.overlap(step)
    assert (seen, stages.finished) == ([0, 0, 0, 1, 1, 1], True)


def test_a_step_knows_the_weights_under_which_it_began(portal):
    rollouts, versions = Rollouts(), [0]
    pipe = pipeline(portal, rollouts, staleness=1, version=lambda: versions[0])
    take(portal, rollouts, pipe, 1)
    pipe.overlap(1)
    versions[0] = 1
    assert take(portal, rollouts, pipe, 2).version == 0
    assert take(portal, rollouts, pipe, 3).version == 1


def test_a_broken_step_is_raised_where_it_is_asked_for_and_passed_over_at_the_end(portal):
    rollouts = Rollouts()
    pipe = pipeline(portal, rollouts, staleness=1, last=20)
    with pytest.raises(ValueError, match="unlucky"):
        take(portal, rollouts, pipe, 13)
    rollouts.gates.pop(13)
    pipe.overlap(12)
    rollouts.finish(portal, 13)
    assert pipe.rest() == []


def test_a_step_that_begins_after_ctrl_c_rolls_out_nothing():
    # The interrupt came while weights were on their way: `stop` had found nothing of this step to end.
    assert asyncio.run(RolloutSource._roll_out(SimpleNamespace(interrupted=True), 3, 0)) == []
