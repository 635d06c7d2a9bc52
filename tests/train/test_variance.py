"""The monitor finds parts of the reward that cannot teach."""

from __future__ import annotations

import pytest

from icrl.train.variance import VarianceMonitor
from icrl.trajectory import Failure, Group, StopReason, Trajectory
from icrl.types import Task


def group(query: str, *components: dict[str, float], broken: tuple[int, ...] = ()) -> Group:
    task = Task(query=query)
    failure = Failure(kind="EngineError", message="gone")
    members = tuple(
        Trajectory(id=str(i), task=task, segments=(), stop_reason=StopReason.ERROR, error=failure)
        if i in broken
        else Trajectory(id=str(i), task=task, segments=(), stop_reason=StopReason.ANSWER)
        for i in range(len(components))
    )
    return Group(task=task, trajectories=members, rewards=(0.0,) * len(members), components=components)


@pytest.fixture
def monitor():
    return VarianceMonitor(patience=4)


def observe(monitor, groups):
    return [warning for g in groups for warning in monitor.observe([g])]


def test_a_constant_part_is_reported_once(monitor):
    groups = [group(str(i), {"em": 1.0, "format": 1.0}, {"em": 0.0, "format": 1.0}) for i in range(10)]
    (warning,) = observe(monitor, groups)
    assert warning == (
        "reward component 'format' never differed within any of 4 groups: it cannot teach anything; it was always 1"
    )
    assert monitor.inert == ("format",)


def test_a_part_that_differs_between_tasks_only_is_inert_too(monitor):
    groups = [group(str(i), {"length": float(i)}, {"length": float(i)}) for i in range(4)]
    (warning,) = observe(monitor, groups)
    assert warning.endswith("it differs between tasks only")


def test_one_difference_is_enough_to_be_alive(monitor):
    same, different = ({"em": 1.0}, {"em": 1.0}), ({"em": 1.0}, {"em": 0.0})
    assert not observe(monitor, [group("a", *different), *(group(str(i), *same) for i in range(9))])


def test_few_groups_and_a_single_task_prove_nothing(monitor):
    same = ({"em": 1.0}, {"em": 1.0})
    assert not observe(monitor, [group(str(i), *same) for i in range(3)])
    assert not observe(VarianceMonitor(patience=4), [group("one", *same)] * 20)


def test_broken_members_and_groups_of_one_do_not_count(monitor):
    broken = [group(str(i), {"em": 1.0}, {}, broken=(1,)) for i in range(9)]
    single = [group(str(i), {"em": 1.0}) for i in range(9)]
    assert not observe(monitor, [*broken, *single])
    assert monitor.inert == ()
