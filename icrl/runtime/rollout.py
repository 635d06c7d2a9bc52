"""Many trajectories at once: groups of one task each, streamed as they complete.

The scheduler knows nothing of rewards but a callable, and nothing of training. One bad trajectory is data on its
group; it never cancels its siblings.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Protocol

from icrl.runtime.agent import Agent
from icrl.runtime.run import Run
from icrl.seeds import seed_for
from icrl.trajectory import Group, Segment, StopReason, Trajectory
from icrl.types import Demonstration, SamplingParams, Task

__all__ = ["Plan", "Rollout", "Score", "Scored"]


class Scored(Protocol):
    """What a reward says about one trajectory."""

    @property
    def total(self) -> float:
        """The reward."""
        ...

    @property
    def components(self) -> Mapping[str, float]:
        """Its parts, by name."""
        ...


Score = Callable[[Trajectory, Task], Awaitable[Scored]]
"""Judges a finished trajectory."""

_Done = asyncio.Queue[tuple[int, Group] | BaseException]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One group to roll out."""

    task: Task
    """What every member works on."""
    demonstrations: tuple[Demonstration, ...] = ()
    """What their prompt shows."""
    members: int = 1
    """Trajectories to make."""
    seed: int = 0
    """Members draw from streams of this seed."""
    id: str = ""
    """Prefix of the trajectory ids."""


class Rollout:
    """Rolls out plans on an open agent.

    Args:
        agent: An open agent.
        score: Judges trajectories.
        sampling: How to sample; members get their own seeds.
        concurrency: Trajectories in flight at most.

    Example:
        >>> import asyncio
        >>> from types import SimpleNamespace
        >>> from icrl.testing import ByteTokenizer, ScriptedEngine
        >>> async def score(trajectory, task):
        ...     return SimpleNamespace(total=float(trajectory.answer in task.answers), components={})
        >>> async def main():
        ...     engine = ScriptedEngine(lambda ids: "<answer> 4 </answer>", tokenizer=ByteTokenizer())
        ...     async with Agent(engine) as agent:
        ...         plan = Plan(task=Task(query="2 + 2?", answers=("4",)), members=2)
        ...         async with Rollout(agent, score=score).groups([plan]) as groups:
        ...             return [group.rewards async for group in groups]
        >>> asyncio.run(main())
        [(1.0, 1.0)]
    """

    def __init__(
        self, agent: Agent, *, score: Score, sampling: SamplingParams | None = None, concurrency: int = 256
    ) -> None:
        self._agent = agent
        self._score = score
        self._sampling = sampling or SamplingParams()
        self._slots = asyncio.Semaphore(concurrency)
        self._live: set[Run] = set()

    @asynccontextmanager
    async def groups(self, plans: Sequence[Plan]) -> AsyncIterator[AsyncIterator[Group]]:
        """Roll the plans out and yield their groups in order of completion; leaving the block cancels the rest."""
        async with self._numbered(plans) as numbered:
            yield (group async for _, group in numbered)

    async def collect(self, plans: Sequence[Plan]) -> list[Group]:
        """Roll the plans out and return their groups in the order of the plans."""
        async with self._numbered(plans) as numbered:
            found = {index: group async for index, group in numbered}
        return [found[index] for index in range(len(plans))]

    def stop(self, reason: StopReason = StopReason.ABORTED) -> None:
        """End every trajectory with what it has, those that wait for a slot too; groups complete with partials."""
        for run in tuple(self._live):
            run.stop(reason)

    @asynccontextmanager
    async def _numbered(self, plans: Sequence[Plan]) -> AsyncIterator[AsyncIterator[tuple[int, Group]]]:
        """Roll the plans out and yield their groups with the plans' positions."""
        done: _Done = asyncio.Queue()
        tasks = [asyncio.create_task(self._report(index, plan, done)) for index, plan in enumerate(plans)]
        try:
            yield _drain(done, len(plans))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _report(self, index: int, plan: Plan, done: _Done) -> None:
        try:
            done.put_nowait((index, await self._group(plan)))
        except BaseExceptionGroup as broken:  # made by the members' task group, around what one of them raised
            done.put_nowait(broken.exceptions[0])
        except BaseException as error:  # the consumer raises it; a lost group would hang it
            done.put_nowait(error)
            raise

    async def _group(self, plan: Plan) -> Group:
        prompt = self._agent.model.prompt(plan.task.messages, plan.demonstrations)
        async with asyncio.TaskGroup() as members:
            tasks = [members.create_task(self._member(plan, i, prompt)) for i in range(plan.members)]
        scored = [task.result() for task in tasks]
        return Group(
            task=plan.task,
            trajectories=tuple(trajectory for trajectory, _ in scored),
            rewards=tuple(score.total for _, score in scored),
            components=tuple(score.components for _, score in scored),
        )

    async def _member(self, plan: Plan, index: int, prompt: tuple[Segment, ...]) -> tuple[Trajectory, Scored]:
        run = self._agent.prepare(
            plan.task,
            prompt,
            shots=len(plan.demonstrations),
            sampling=replace(self._sampling, seed=seed_for(plan.seed, index)),
            trajectory_id=f"{plan.id}{index}",
        )
        self._live.add(run)
        try:
            async with self._slots:
                trajectory = await run.execute()
        finally:
            self._live.discard(run)
        return trajectory, await self._score(trajectory, plan.task)


async def _drain(done: _Done, count: int) -> AsyncIterator[tuple[int, Group]]:
    for _ in range(count):
        ending = await done.get()
        if isinstance(ending, BaseException):
            raise ending
        yield ending
