"""One group in progress."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from icrl.runtime.rollout.batch import Batch
from icrl.runtime.rollout.plan import Plan, Scored
from icrl.trajectory import Group, Segment, Trajectory

if TYPE_CHECKING:
    from icrl.runtime.rollout.member import Member

__all__ = ["OpenGroup"]

Render = Callable[[Plan], tuple[Segment, ...]]


@dataclass(slots=True, eq=False)
class OpenGroup:
    """A plan, and what has come of it so far."""

    order: int
    """Its age: smaller is older."""
    position: int
    """Of its plan, in the caller's list."""
    plan: Plan
    """What is asked for."""
    batch: Batch
    """Whom it belongs to."""
    waiting: deque[tuple[int, int]] = field(init=False)
    """Members that have not started: their index, and which attempt it is."""
    live: set[Member] = field(default_factory=set)
    """Members that have."""
    results: dict[int, tuple[Trajectory, Scored]] = field(default_factory=dict)
    """What has come of members, by index."""
    stopped: bool = False
    """Whether it is to end with the members that are complete."""
    dismissed: bool = False
    """Whether nobody waits for it any more."""
    _begun: bool = False
    _prompt: tuple[Segment, ...] | None = None

    def __post_init__(self) -> None:
        self.waiting = deque((index, 0) for index in range(self.plan.members))

    @property
    def waits(self) -> bool:
        """Whether it still has a member to start."""
        return bool(self.waiting) and not self.batch.closed

    @property
    def begun(self) -> bool:
        """Whether a member has started."""
        return self._begun

    @property
    def complete(self) -> bool:
        """Whether nothing more will come of it."""
        return not self.waiting and not self.live

    def next(self) -> tuple[int, int]:
        """Return index and attempt of the member to start now."""
        self._begun = True
        return self.waiting.popleft()

    def prompt(self, render: Render) -> tuple[Segment, ...]:
        """Return the prompt that the members share; rendered when the first of them needs it."""
        if self._prompt is None:
            self._prompt = render(self.plan)
        return self._prompt

    def rewards(self) -> list[float]:
        """Return the rewards of the complete members that did not fail."""
        return [score.total for t, score in self.results.values() if not t.failed]

    def lengths(self) -> list[int]:
        """Return how many tokens each complete member sampled."""
        return [trajectory.sampled_tokens for trajectory, _ in self.results.values()]

    def group(self) -> Group:
        """Return what has come of it, in the order of the members."""
        results = [self.results[index] for index in sorted(self.results)]
        return Group(
            task=self.plan.task,
            trajectories=tuple(trajectory for trajectory, _ in results),
            rewards=tuple(score.total for _, score in results),
            components=tuple(score.components for _, score in results),
        )
