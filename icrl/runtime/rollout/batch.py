"""One call of `groups` or `collect`: its groups, its tasks, and what it has to hand over."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from icrl.errors import RewardError
from icrl.trajectory import Group, StopReason

if TYPE_CHECKING:
    from icrl.runtime.rollout.group import OpenGroup

__all__ = ["Batch"]


@dataclass(slots=True, eq=False)
class Batch:
    """What one caller waits for."""

    expected: int
    """Groups to hand over."""
    open: dict[OpenGroup, None] = field(default_factory=dict)
    """Groups that are not complete, oldest first."""
    tasks: set[asyncio.Task[Any]] = field(default_factory=set)
    """Everything that runs for this caller."""
    ending: StopReason | None = None
    """Why everything ends now with what it has."""
    ending_since: float = 0.0
    """When that was said, on the clock of `time.monotonic`."""
    closed: bool = False
    """Whether the caller has left."""
    scores: int = 0
    """Trajectories that were judged."""
    reward_error: RewardError | None = None
    """The first thing that the reward raised."""
    complete: dict[int, Group] = field(default_factory=dict)
    """Complete groups that the caller does not have yet, by the position of their plans."""
    _done: asyncio.Queue[tuple[int, Group] | BaseException] = field(default_factory=asyncio.Queue)

    def report(self, position: int, group: Group) -> None:
        """Hand over a complete group.

        Args:
            position: Of its plan.
            group: What came of it.
        """
        self.complete[position] = group
        self._done.put_nowait((position, group))

    def fail(self, error: BaseException) -> None:
        """Make the caller raise."""
        self._done.put_nowait(error)

    async def one(self) -> tuple[int, Group]:
        """Wait for the next group to complete, and return it with the position of its plan."""
        ending = await self._done.get()
        if isinstance(ending, BaseException):
            raise ending
        return ending

    def take(self, position: int) -> Group:
        """Return a complete group for good: to the caller, or to be discarded."""
        return self.complete.pop(position)

    @property
    def drained(self) -> bool:
        """Whether nothing more will be handed over."""
        return not self.open and self._done.empty()

    def check(self) -> None:
        """Refuse a reward that has not judged a single trajectory: one that never works is a mistake.

        Raises:
            RewardError: What it raised first.
        """
        if self.reward_error is not None and not self.scores:
            raise self.reward_error
