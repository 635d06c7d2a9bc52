"""Starts members, has them judged, and settles what became of them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

from icrl.errors import RewardError
from icrl.runtime.agent import Agent
from icrl.runtime.rollout.batch import Batch
from icrl.runtime.rollout.group import OpenGroup
from icrl.runtime.rollout.group_stop import GroupStop, stop_members
from icrl.runtime.rollout.member import Member
from icrl.runtime.rollout.plan import Plan, Score, Scored
from icrl.runtime.rollout.policy import RolloutPolicy
from icrl.runtime.rollout.slots import Slots
from icrl.runtime.rollout.tally import Ledger
from icrl.runtime.rollout.watchdog import Watchdog
from icrl.trajectory import Failure, Segment, StopReason, Trajectory
from icrl.types import SamplingParams, Task

__all__ = ["Crew"]

BURST = 64
"""Members that are started in one turn of the loop."""
FROM_WITHIN = "was cancelled from within, by something that it called"
"""What is said of a cancellation that nobody has asked for: some clients' connections end with one."""
_LOG = logging.getLogger("icrl.rollout")


@dataclass(frozen=True, slots=True)
class _Nothing:
    """The reward of a trajectory that was not judged."""

    total: float = 0.0
    components: Mapping[str, float] = field(default_factory=dict)


class Crew:
    """Everything between a group that waits and a group that is complete.

    Args:
        agent: An open agent.
        score: Judges trajectories.
        sampling: How to sample; members get their own seeds.
        slots: Who may start.
        policy: What becomes of what does not go to plan.
        on_discard: Hears every trajectory that is in no group handed over.
    """

    def __init__(
        self,
        agent: Agent,
        *,
        score: Score,
        sampling: SamplingParams,
        slots: Slots[OpenGroup],
        policy: RolloutPolicy,
        on_discard: Callable[[Trajectory], None] | None,
    ) -> None:
        self._agent = agent
        self._score = score
        self._sampling = sampling
        self._slots = slots
        self._policy = policy
        self._on_discard = on_discard
        self.ledger = Ledger()
        """Counts what becomes of everything."""
        self._stopping = GroupStop(policy, self.ledger)
        self._pumping = False
        self.watchdog = Watchdog(policy, self.ledger, self._abandon)
        """Ends what is stuck."""

    def admit(self, group: OpenGroup) -> None:
        """Take a group in; it starts when there are slots for it."""
        group.batch.open[group] = None
        self._slots.queue(group)
        self._complete(group)

    def pump(self) -> None:
        """Start as many members as there are slots for; of very many, some in every turn of the loop.

        A member renders, spells and sends before it waits for the first time. Thousands of them at once would keep the
        loop from everything else for seconds: from answers, probes and deadlines.
        """
        for _ in range(BURST):
            group = self._slots.take()
            if group is None:
                return
            self._start(group, holds_slot=True)
        if not self._pumping:
            self._pumping = True
            asyncio.get_running_loop().call_soon(self._pump_on)

    def _pump_on(self) -> None:
        self._pumping = False
        self.pump()

    def end(self, batch: Batch, reason: StopReason) -> None:
        """End everything of a batch with what it has; members that wait for a slot end before their first token."""
        if batch.ending is not None or batch.closed:
            return
        batch.ending, batch.ending_since = reason, time.monotonic()
        for group in tuple(batch.open):
            for member in tuple(group.live):
                member.stop(reason)
            while group.waiting:
                self._start(group, holds_slot=False)

    def dismiss(self, batch: Batch) -> set[int]:
        """End the groups of a batch that are not complete.

        Returns:
            Positions of those that had begun; each is still reported, with the members that were complete.
        """
        begun = [group for group in batch.open if group.begun]
        self.ledger.add("groups_unbegun", len(batch.open) - len(begun))
        for group in tuple(batch.open):
            group.dismissed = True
            for member in group.live:
                if member.judged:
                    member.unwanted = True
                    member.cancel(StopReason.ABORTED)
            stop_members(group)
            if group.begun:
                self._complete(group)
            else:
                del batch.open[group]
        return {group.position for group in begun}

    def leave(self, batch: Batch) -> None:
        """Forget what a closed batch has left running."""
        for member in tuple(self.watchdog.members):
            if member.group.batch is batch:
                self._forget(member)

    def give_up(self, batch: Batch) -> None:
        """Account for what a batch has that its caller did not take, now that he has left."""
        groups = [[trajectory for trajectory, _ in group.results.values()] for group in batch.open]
        groups += [list(group.trajectories) for group in batch.complete.values()]
        batch.open.clear()
        batch.complete.clear()
        self.ledger.add("groups_left", len(groups))
        for trajectory in [trajectory for group in groups for trajectory in group]:
            self.discard(trajectory)

    def discard(self, trajectory: Trajectory) -> None:
        """Account for a trajectory that is in no group handed over."""
        self.ledger.add("tokens_discarded", trajectory.sampled_tokens)
        if self._on_discard is not None:
            self._on_discard(trajectory)

    def _start(self, group: OpenGroup, *, holds_slot: bool) -> None:
        index, attempt = group.next()
        member = Member(group=group, index=index, attempt=attempt, holds_slot=holds_slot)
        if group.batch.ending is not None:
            member.stop(group.batch.ending)
        group.live.add(member)
        self.watchdog.members.add(member)
        self.ledger.add("started")
        member.task = asyncio.get_running_loop().create_task(self._work(member))
        group.batch.tasks.add(member.task)
        member.task.add_done_callback(partial(self._ended, member))

    async def _work(self, member: Member) -> None:
        try:
            trajectory = await self._run(member)
        except asyncio.CancelledError:
            if _cancelled():
                if not member.cancelled_alone:
                    raise
            else:
                member.broken(Failure(kind="CancelledError", message=FROM_WITHIN))
            trajectory = member.cut()
        if member.settled or member.group.batch.closed:  # it was left behind, and ended after all
            return
        _go_on()
        member.ended(trajectory)
        if not trajectory.failed:  # the slot of a failed one is for another in its place
            self._hand_on(member)
        score: Scored = _Nothing()
        try:
            score = await self._judge(member)
        except asyncio.CancelledError:
            if not member.cancelled_alone:
                raise
            member.trajectory = member.cut()
        self._settle(member, score)

    async def _run(self, member: Member) -> Trajectory:
        plan = member.group.plan
        run = self._agent.prepare(
            plan.task,
            member.group.prompt(self._render),
            shots=len(plan.demonstrations),
            sampling=replace(self._sampling, seed=member.seed),
            trajectory_id=member.id,
        )
        member.run = run
        if member.reason is not None:  # told to end before it had begun
            run.stop(member.reason, member.failure)
        return await run.execute()

    def _render(self, plan: Plan) -> tuple[Segment, ...]:
        return self._agent.model.prompt(plan.task.messages, plan.demonstrations)

    async def _judge(self, member: Member) -> Scored:
        trajectory, batch = member.trajectory, member.group.batch
        if trajectory is None or trajectory.failed or _unwanted(member, trajectory):
            return _Nothing()
        try:
            score = await self._asked(trajectory, member.group.plan.task)
        except RewardError as error:
            self.ledger.add("score_failures")
            _LOG.warning("trajectory %s could not be judged: %s", trajectory.id, error)
            batch.reward_error = batch.reward_error or error
            failure = Failure(kind=type(error).__name__, message=str(error))
            member.trajectory = replace(trajectory, stop_reason=StopReason.ERROR, error=failure, answer=None)
            return _Nothing()
        batch.scores += 1
        return score

    async def _asked(self, trajectory: Trajectory, task: Task) -> Scored:
        try:
            return await self._score(trajectory, task)
        except asyncio.CancelledError:
            if _cancelled():
                raise
            raise RewardError(f"its reward {FROM_WITHIN}") from None

    def _complete(self, group: OpenGroup) -> None:
        """Report a group of which nothing more will come."""
        if group.complete and group in group.batch.open:
            complete = group.group()
            del group.batch.open[group]
            self._stopping.learn(group)
            group.batch.report(group.position, complete)

    def _hand_on(self, member: Member) -> None:
        """Give the member's slot to the next."""
        if member.holds_slot:
            member.holds_slot = False
            self._slots.free()
            self.pump()

    def _settle(self, member: Member, score: Scored) -> None:
        """Put what became of a member into its group, or put another in its place."""
        trajectory, group = member.trajectory, member.group
        if trajectory is None or member.settled or group.batch.closed:
            return
        member.settled = True
        group.live.discard(member)
        self.ledger.add("finished")
        self.ledger.add("tokens", trajectory.sampled_tokens)
        if trajectory.failed:
            self.ledger.add("failed")
        if _unwanted(member, trajectory):
            self._stopping.saved(group, trajectory)
            self.discard(trajectory)
        elif not trajectory.failed or self._keeps(member, trajectory):
            group.results[member.index] = trajectory, score
        self._stopping.consider(group)
        self._complete(group)
        self.pump()

    def _keeps(self, member: Member, trajectory: Trajectory) -> bool:
        """Tell whether a failed trajectory stays in its group; count it, or queue another in its place, if not."""
        group = member.group
        over = group.stopped or group.batch.ending is not None
        if self._policy.failed == "drop":
            self.ledger.add("dropped")
        elif self._policy.failed == "replace" and not over and member.attempt + 1 < self._policy.attempts:
            self.ledger.add("replaced")
            group.waiting.append((member.index, member.attempt + 1))
            self._slots.queue(group)
        else:
            return True
        self.discard(trajectory)
        return False

    def _ended(self, member: Member, task: asyncio.Task[None]) -> None:
        batch = member.group.batch
        batch.tasks.discard(task)
        self.watchdog.members.discard(member)
        self._hand_on(member)
        error = None if task.cancelled() else task.exception()
        if member.settled and error is None:
            return
        if not member.settled:
            self.ledger.add("cancelled")
        if member.abandoned:
            if error is not None:  # what came of it in the end is nobody's any more
                _LOG.error("trajectory %s, which was left behind, has ended with %r", member.id, error)
        elif not batch.closed:
            batch.fail(error or asyncio.CancelledError())

    def _abandon(self, member: Member) -> None:
        """Go on without a task that cannot be ended."""
        self._forget(member)
        if not member.group.batch.closed:
            if member.failure is None and not member.unwanted:
                member.reason = StopReason.STALLED
                member.failure = Failure(kind="Stalled", message="ignored its cancellation")
            member.trajectory = member.cut()
            self._settle(member, _Nothing())

    def _forget(self, member: Member) -> None:
        self.ledger.add("abandoned")
        member.abandoned = True
        self.watchdog.members.discard(member)
        if member.task is not None:
            member.group.batch.tasks.discard(member.task)
        self._hand_on(member)


def _cancelled() -> bool:
    """Tell whether somebody has cancelled this task."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _go_on() -> None:
    """Forget that this task was cancelled: what it does next has timeouts of its own, which count cancellations."""
    task = asyncio.current_task()
    while task is not None and task.cancelling():
        task.uncancel()


def _unwanted(member: Member, trajectory: Trajectory) -> bool:
    """Tell whether a trajectory was ended, or its judging, because its group does without it."""
    return member.unwanted and (trajectory.stop_reason is StopReason.ABORTED or member.cancelled_at is not None)
