"""The scheduler's face: many trajectories in flight on one agent, in groups."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
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
        batch = Batch(expected=len(plans))
        try:
            async with self._rolling(batch, plans, deadline_s):
                yield self._handed_over(batch)
        finally:
            self._crew.give_up(batch)

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
        batch = Batch(expected=len(plans))
        try:
            async with self._rolling(batch, plans, deadline_s):
                await (self._every(batch) if keep is None else self._first(batch, keep))
            self._crew.ledger.add("groups", len(batch.complete))
            return [batch.take(position) for position in sorted(batch.complete)]
        finally:
            self._crew.give_up(batch)

    def stop(self, reason: StopReason = StopReason.ABORTED) -> None:
        """End every trajectory with what it has, those that wait for a slot too; groups complete with partials.

        To be called on the event loop's thread, as everything here.
        """
        for batch in tuple(self._batches):
            self._crew.end(batch, reason)

    async def _handed_over(self, batch: Batch) -> AsyncIterator[Group]:
        for _ in range(batch.expected):
            position, _ = await batch.one()
            self._crew.ledger.add("groups")
            yield batch.take(position)
        batch.check()

    async def _every(self, batch: Batch) -> None:
        for _ in range(batch.expected):
            await batch.one()
        batch.check()

    async def _first(self, batch: Batch, keep: int) -> None:
        """Wait for the groups to keep; end and account for the others."""
        kept: set[int] = set()
        others: list[int] = []
        for _ in range(batch.expected):
            position, group = await batch.one()
            if group.informative:
                kept.add(position)
            else:
                others.append(position)
            if len(kept) == keep:
                break
        else:
            batch.check()
        kept.update(others[: keep - len(kept)])
        await self._dismiss(batch, kept)

    async def _dismiss(self, batch: Batch, kept: set[int]) -> None:
        """End what is not complete, and account for everything that is not kept."""
        ended = self._crew.dismiss(batch)
        while not batch.drained:
            await batch.one()
        for position in [position for position in batch.complete if position not in kept]:
            self._crew.ledger.add("groups_cancelled" if position in ended else "groups_surplus")
            for trajectory in batch.take(position).trajectories:
                self._crew.discard(trajectory)

    @asynccontextmanager
    async def _rolling(self, batch: Batch, plans: Sequence[Plan], deadline_s: float | None) -> AsyncIterator[None]:
        """Roll the plans out; on leaving, nothing of them stays behind."""
        self._attend()
        self._batches.add(batch)
        for position, plan in enumerate(plans):
            self._crew.admit(OpenGroup(order=next(self._ages), position=position, plan=plan, batch=batch))
        timer = self._timer(batch, self._policy.step_deadline_s if deadline_s is None else deadline_s)
        self._crew.pump()
        try:
            yield
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
            for other in self._attendants:
                other.cancel()
            self._attendants = set()  # whoever calls next gets others

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
        try:
            await _gone(ending, self._policy.grace_s)
        finally:
            left = [task for task in ending if not task.done()]
            if left:
                _LOG.error("%d tasks ignore their cancellation and are left behind", len(left))
                self._crew.leave(batch)


async def _gone(tasks: set[asyncio.Task[Any]], timeout_s: float) -> None:
    """Wait until cancelled tasks are gone; whoever cancels the wait itself hears of it when it is over."""
    ends = time.monotonic() + timeout_s
    cancelled: asyncio.CancelledError | None = None
    while waiting := {task for task in tasks if not task.done()}:
        try:
            await asyncio.wait(waiting, timeout=max(0.0, ends - time.monotonic()))
            break
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
