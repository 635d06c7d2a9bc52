"""How good a model is: the loop of training, run on held-out tasks, and counted.

Needs no training library: `icrl eval` runs wherever an agent runs.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence

from icrl.runtime.agent import Agent, whole_turns
from icrl.runtime.rollout import Plan, Rollout
from icrl.seeds import seed_for
from icrl.train.metrics import Evaluation
from icrl.train.rewards import Matcher, QuestionReward, checked, f1, strict
from icrl.train.statistics import mean, mean_interval
from icrl.trajectory import Group, Trajectory
from icrl.types import Demonstration, SamplingParams, Task

__all__ = ["called", "evaluate"]


async def evaluate(
    agent: Agent,
    tasks: Sequence[Task],
    *,
    demonstrations: Sequence[Demonstration] = (),
    sampling: SamplingParams | None = None,
    match: Matcher = strict,
    samples: int = 1,
    seed: int = 0,
    concurrency: int = 256,
) -> tuple[Evaluation, list[Group]]:
    """Ask an open agent every task and count.

    Args:
        agent: An open agent.
        tasks: Tasks with reference answers.
        demonstrations: Shown in every prompt.
        sampling: How to sample; greedy by default.
        match: What counts as a match of an answer.
        samples: Trajectories a task.
        seed: Selects the random streams.
        concurrency: Trajectories in flight at most.

    Returns:
        The counts, and the groups they were taken from in the order of the tasks.
    """
    started = time.monotonic()
    reward = checked(QuestionReward(well_formed=agent.model.dialect.well_formed, match=match))
    rollout = Rollout(
        agent,
        score=reward,
        sampling=sampling or whole_turns(temperature=0.0),
        concurrency=concurrency,
    )
    plans = [
        Plan(
            task=task,
            demonstrations=tuple(demonstrations),
            members=samples,
            seed=seed_for(seed, "evaluation", number),
            id=f"evaluation/{number}/",
        )
        for number, task in enumerate(tasks)
    ]
    groups = await rollout.collect(plans)
    return _count(groups, samples, len(demonstrations), time.monotonic() - started), groups


def _count(groups: Sequence[Group], samples: int, shots: int, wall_s: float) -> Evaluation:
    trajectories = [t for group in groups for t in group.trajectories]
    matches = [mean([part.get("em", 0.0) for part in group.components]) for group in groups]
    overlaps = [mean([f1(t.answer, group.task.answers) for t in group.trajectories]) for group in groups]
    return Evaluation(
        tasks=len(groups),
        samples=samples,
        shots=shots,
        em=mean(matches),
        em_interval=mean_interval(matches),
        f1=mean(overlaps),
        f1_interval=mean_interval(overlaps),
        format_rate=mean([part.get("format", 0.0) for group in groups for part in group.components]),
        valid_call_rate=mean([float(called(t)) for t in trajectories]),
        calls=mean([float(len(t.calls)) for t in trajectories]),
        response_tokens=mean([float(len(t.ids) - t.prompt_length) for t in trajectories]),
        errors=sum(t.error is not None for t in trajectories),
        wall_s=wall_s,
        stop_reasons=dict(Counter(str(t.stop_reason) for t in trajectories).most_common()),
        em_by_world=_by_world(groups, matches),
    )


def _by_world(groups: Sequence[Group], matches: Sequence[float]) -> dict[str, float]:
    """Average over the tasks of each world, where the tasks name more than one."""
    parts: dict[str, list[float]] = {}
    for group, match in zip(groups, matches, strict=True):
        if (world := group.task.metadata.get("world")) is not None:
            parts.setdefault(str(world), []).append(match)
    return {world: mean(values) for world, values in sorted(parts.items())} if len(parts) > 1 else {}


def called(trajectory: Trajectory) -> bool:
    """Tell whether a tool answered at least one call without error."""
    return any(result.error is None for result in trajectory.results)
