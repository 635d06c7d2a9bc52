"""What a rollout is asked for: groups of trajectories, and a judge."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from icrl.trajectory import Trajectory
from icrl.types import Demonstration, Task

__all__ = ["Plan", "Score", "Scored"]


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
"""Judges a finished trajectory; not asked about one that `StopReason.failed`, whose reward is 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One group to roll out.

    Example:
        >>> Plan(task=Task(query="2 + 2?", answers=("4",)), members=8, seed=7, id="0/").members
        8
    """

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
