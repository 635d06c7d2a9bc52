"""The scheduler's face: many trajectories in flight on one agent, in groups."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from icrl.errors import ConfigError
from icrl.runtime.agent import Agent, whole_turns
from icrl.runtime.rollout.batch import Batch
from icrl.runtime.rollout.concurrency import Window, follow
from icrl.runtime.rollout.crew import Crew
from icrl.runtime.rollout.group import OpenGroup
from icrl.runtime.rollout.plan import Plan, Score
from icrl.runtime.rollout.policy import RolloutPolicy
from icrl.runtime.rollout.slots import Slots
from icrl.runtime.rollout.tally import RolloutTally
from icrl.trajectory import Group, StopReason, Trajectory
from icrl.types import SamplingParams

__all__ = ["Rollout"]

_LOG = logging.getLogger("icrl.rollout")


class Rollout:
    """Rolls out plans on an open agent.

    Several calls may be in progress at once; they share the slots, first come, first served. Nothing of a call is left
    running once it has returned, raised, or been cancelled.

    Args:
        agent: An open agent.
        score: Judges trajectories.
        sampling: How to sample; members get their own seeds.
        concurrency: Trajectories in flight at most.
        policy: What becomes of what does not go to plan.
        on_discard: Hears every trajectory that ended and is in no group handed over: those replaced, dropped, stopped
            with their group, or over-sampled.

    Raises:
        ConfigError: `concurrency` is below 1.

    Example:
        >>> import asyncio
        >>> from types import SimpleNamespace
        >>> from icrl.testing import ByteTokenizer, ScriptedEngine
        >>> from icrl.types import Task
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
        self,
        agent: Agent,
        *,
        score: Score,
        sampling: SamplingParams | None = None,
        concurrency: int = 256,
        policy: RolloutPolicy | None = None,
        on_discard: Callable[[Trajectory], None] | None = None,
    ) -> None:
        if concurrency < 1:
            raise ConfigError(f"concurrency: must be >= 1, not {concurrency!r}")
        self._agent = agent
        self._concurrency = concurrency
        self._policy = policy or RolloutPolicy()
        self._slots: Slots[OpenGroup] = Slots(concurrency)
        self._crew = Crew(
            agent,
            score=score,
            sampling=sampling or whole_turns(),
            slots=self._slots,
            policy=self._policy,
            on_discard=on_discard,
        )
        self._ages = itertools.count()
        self._batches: set[Batch] = set()
        self._attendants: set[asyncio.Task[Any]] = set()

    @property
    def tally(self) -> RolloutTally:
        """What became of everything so far."""
        return self._crew.ledger.snapshot()

    @property
    def concurrency(self) -> int:
        """Trajectories that may be in flight now; the engine's load moves it, where the engine tells."""
        return self._slots.limit

    @asynccontextmanager
    async def groups(
        self, plans: Sequence[Plan], *, deadline_s: float | None = None
    ) -> AsyncIterator[AsyncIterator[Group]]:
        """Roll the plans out and yield their groups in order of completion; leaving the block cancels the rest.

        Args:
            plans: What to roll out.
            deadline_s: Replaces `RolloutPolicy.step_deadline_s`.

        Raises:
            RewardError: The reward raised it for every trajectory; anything else that it raises comes at once.
        """
        async with self._batch(plans, deadline_s) as batch:
            yield self._handed_over(batch)

    async def collect(
        self, plans: Sequence[Plan], *, keep: int | None = None, deadline_s: float | None = None
    ) -> list[Group]:
        """Roll the plans out and return their groups in the order of the plans.

        Args:
            plans: What to roll out.
            keep: Return this many groups, the first to complete that are informative, and end the others. Where all
                are complete and too few of them informative, the first others to complete make up the number.
            deadline_s: Replaces `RolloutPolicy.step_deadline_s`.

        Raises:
            ConfigError: `keep` is not between 1 and the number of plans.
            RewardError: The reward raised it for every trajectory; anything else that it raises comes at once.
        """
        if keep is not None and not 1 <= keep <= len(plans):
            raise ConfigError(f"keep: must be between 1 and the number of plans ({len(plans)}), not {keep!r}")
        async with self._batch(plans, deadline_s) as batch:
            found = await (self._every(batch) if keep is None else self._first(batch, keep))
        self._crew.ledger.add("groups", len(found))
        return [found[position] for position in sorted(found)]

    def stop(self, reason: StopReason = StopReason.ABORTED) -> None:
        """End every trajectory with what it has, those that wait for a slot too; groups complete with partials.

        To be called on the event loop's thread, as everything here.
        """
        for batch in tuple(self._batches):
            self._crew.end(batch, reason)

    async def _handed_over(self, batch: Batch) -> AsyncIterator[Group]:
        for _ in range(batch.expected):
            _, group = await batch.one()
            self._crew.ledger.add("groups")
            yield group
        batch.check()

    async def _every(self, batch: Batch) -> dict[int, Group]:
        found = dict([await batch.one() for _ in range(batch.expected)])
        batch.check()
        return found

    async def _first(self, batch: Batch, keep: int) -> dict[int, Group]:
        """Return the groups to keep, by position; end and account for the others."""
        kept: dict[int, Group] = {}
        others: dict[int, Group] = {}
        for _ in range(batch.expected):
            position, group = await batch.one()
            (kept if group.informative else others)[position] = group
            if len(kept) == keep:
                break
        else:
            batch.check()
        for position in list(others)[: keep - len(kept)]:
            kept[position] = others.pop(position)
        await self._dismiss(batch, surplus=list(others.values()))
        return kept

    async def _dismiss(self, batch: Batch, *, surplus: list[Group]) -> None:
        """End what is not complete, and account for everything that is not kept."""
        ended = self._crew.dismiss(batch)
        partial: list[Group] = []
        while not batch.drained:
            position, group = await batch.one()
            (partial if position in ended else surplus).append(group)
        self._crew.ledger.add("groups_surplus", len(surplus))
        for trajectory in [t for group in surplus + partial for t in group.trajectories]:
            self._crew.discard(trajectory)

    @asynccontextmanager
    async def _batch(self, plans: Sequence[Plan], deadline_s: float | None) -> AsyncIterator[Batch]:
        """Begin to roll the plans out; on leaving, nothing of them stays behind."""
        batch = Batch(expected=len(plans))
        self._attend()
        self._batches.add(batch)
        for position, plan in enumerate(plans):
            self._crew.admit(OpenGroup(order=next(self._ages), position=position, plan=plan, batch=batch))
        timer = self._timer(batch, self._policy.step_deadline_s if deadline_s is None else deadline_s)
        self._crew.pump()
        try:
            yield batch
        finally:
            if timer is not None:
                timer.cancel()
            await self._leave(batch)

    def _timer(self, batch: Batch, deadline_s: float | None) -> asyncio.TimerHandle | None:
        if deadline_s is None:
            return None
        return asyncio.get_running_loop().call_later(deadline_s, self._crew.end, batch, StopReason.DEADLINE)

    def _attend(self) -> None:
        """Have the watchdog at work, and somebody to ask for the engine's load, while there is anything in flight."""
        probe = getattr(self._agent.model.engine, "probe", None)
        if self._attendants:
            return
        self._attendants.add(asyncio.create_task(self._crew.watchdog.watch()))
        if probe is not None and self._policy.feedback:
            minimum = min(self._policy.min_concurrency, self._concurrency)
            window = Window(limit=self._slots.limit, minimum=minimum, maximum=self._concurrency)
            following = follow(
                probe,
                window,
                self._slots,
                ledger=self._crew.ledger,
                every_s=self._policy.probe_every_s,
                changed=self._crew.pump,
            )
            self._attendants.add(asyncio.create_task(following))
        for attendant in self._attendants:
            attendant.add_done_callback(self._attended)

    def _attended(self, attendant: asyncio.Task[Any]) -> None:
        error = None if attendant.cancelled() else attendant.exception()
        if error is not None:  # a defect; without its attendants a rollout could hang
            for batch in self._batches:
                batch.fail(error)

    async def _leave(self, batch: Batch) -> None:
        """Cancel what still runs for a caller, and wait until it is gone, but not for ever."""
        batch.closed = True
        self._batches.discard(batch)
        ending = set(batch.tasks)
        if not self._batches:
            ending |= self._attendants
            self._attendants = set()
        for task in ending:
            task.cancel()
        if ending:
            _, left = await asyncio.wait(ending, timeout=self._policy.grace_s)
            if left:
                _LOG.error("%d tasks ignore their cancellation and are left behind", len(left))
                self._crew.leave(batch)
