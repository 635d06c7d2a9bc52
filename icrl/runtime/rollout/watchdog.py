"""Ends what is stuck, and says what it was waiting for."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import NoReturn

from icrl.runtime.rollout.member import Member
from icrl.runtime.rollout.policy import RolloutPolicy
from icrl.runtime.rollout.tally import Ledger
from icrl.trajectory import Failure, StopReason

__all__ = ["Watchdog"]

TURNS = 16
"""Turns of the event loop between a tool's or engine's answer and the end of the wait for it, at most."""

_LOG = logging.getLogger("icrl.rollout")


class Watchdog:
    """Watches every trajectory in progress from one task.

    A run that waits for one thing longer than `RolloutPolicy.stall_s`, or a reward that takes longer than
    `score_timeout_s`, ends as `STALLED`. Whatever was told to end and does not within `grace_s` is cancelled, and its
    trajectory is what was recorded; a task that ignores even that for as long is left behind.

    Args:
        policy: How long things may take.
        ledger: Counts what stalled.
        abandon: Settles a member whose task cannot be ended.
    """

    def __init__(self, policy: RolloutPolicy, ledger: Ledger, abandon: Callable[[Member], None]) -> None:
        self._policy = policy
        self._ledger = ledger
        self._abandon = abandon
        self.members: set[Member] = set()
        """What is watched."""

    async def watch(self) -> NoReturn:
        """Look again and again, until cancelled."""
        shortest_s = min(self._policy.stall_s, self._policy.score_timeout_s, self._policy.grace_s)
        every_s = min(1.0, max(0.01, shortest_s / 4))
        while True:
            await asyncio.sleep(every_s)
            # After the loop was busy for long, waits that are over look like stalls; let them move on first.
            for _ in range(TURNS):
                await asyncio.sleep(0)
            self.look(time.monotonic())

    def look(self, now: float) -> None:
        """End what is stuck at a time of the clock of `time.monotonic`."""
        for member in tuple(self.members):
            if member.cancelled_at is not None:
                if now - member.cancelled_at > self._policy.grace_s:
                    self._leave(member)
            elif member.told_at is not None:
                if now - member.told_at > self._policy.grace_s:
                    member.cancel(StopReason.ABORTED)
            elif member.judged:
                self._look_at_score(member, now)
            else:
                self._look_at_run(member, now)

    def _look_at_score(self, member: Member, now: float) -> None:
        batch = member.group.batch
        late = now - member.since > self._policy.score_timeout_s
        # Once the whole step is over, its last rewards are not waited for as long as others.
        if batch.ending is not None:
            late = late or now - max(member.since, batch.ending_since) > self._policy.grace_s
        if late:
            message = f"waited {now - member.since:.3g} s for its score"
            member.cancel(StopReason.STALLED, self._stalled(member, "score", message))

    def _look_at_run(self, member: Member, now: float) -> None:
        run = member.run
        if run is None:
            return
        waits = run.waits
        if waits is not None and now - waits.since > self._policy.stall_s:
            message = f"waited {self._policy.stall_s:g} s for {waits.what}"
            member.stop(StopReason.STALLED, self._stalled(member, waits.what, message))
        elif now - member.since > run.limits.deadline_s + self._policy.grace_s:
            message = f"did not end within {self._policy.grace_s:g} s of its deadline"
            member.cancel(StopReason.STALLED, self._stalled(member, "end", message))

    def _stalled(self, member: Member, what: str, message: str) -> Failure:
        self._ledger.stalled[what] += 1
        _LOG.warning("trajectory %s %s; it ends as stalled", member.id, message)
        return Failure(kind="Stalled", message=message)

    def _leave(self, member: Member) -> None:
        _LOG.error("trajectory %s ignores its cancellation; its task is left behind", member.id)
        self._abandon(member)
