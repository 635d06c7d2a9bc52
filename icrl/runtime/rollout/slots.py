"""Who may start next: members of the oldest group first."""

from __future__ import annotations

import heapq
import itertools
from typing import Generic, Protocol, TypeVar

__all__ = ["Queued", "Slots"]


class Queued(Protocol):
    """A group with members that have not started."""

    @property
    def order(self) -> int:
        """Its age: smaller is older."""
        ...

    @property
    def waits(self) -> bool:
        """Whether it still has a member to start."""
        ...


_Q = TypeVar("_Q", bound=Queued)


class Slots(Generic[_Q]):
    """A number of places, and the groups that wait for them.

    Groups are begun in the order they came, so a begun group is older than all that are not; serving the oldest first
    completes groups early, and a member that is made anew goes before everything younger than its group.

    Args:
        limit: Places; may be changed at any time.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        """Places there are."""
        self.used = 0
        """Places taken; above `limit` after it was lowered."""
        self._queue: list[tuple[int, int, _Q]] = []
        self._tie = itertools.count()

    def queue(self, group: _Q) -> None:
        """Let a group wait for places; one that waits already may be queued again."""
        heapq.heappush(self._queue, (group.order, next(self._tie), group))

    def take(self) -> _Q | None:
        """Take a place for a member of the oldest group; `None` where there is no place, or nobody waits."""
        if self.used >= self.limit:
            return None
        while self._queue:
            group = self._queue[0][2]
            if group.waits:
                self.used += 1
                return group
            heapq.heappop(self._queue)
        return None

    def free(self) -> None:
        """Give a place back."""
        self.used -= 1
