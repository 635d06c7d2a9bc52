"""Sums of named rewards."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

from icrl.errors import ConfigError, RewardError
from icrl.train.rewards.score import Reward, Score, close_reward, judge
from icrl.trajectory import Trajectory
from icrl.types import Task

__all__ = ["Part", "WeightedReward"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One summand."""

    name: str
    """What reports call it."""
    reward: Reward
    """What judges."""
    weight: float = 1.0
    """What its total is multiplied by; negative for a penalty."""

    def __post_init__(self) -> None:
        if not self.name:
            raise ConfigError("name: is empty; reports need one")
        if not math.isfinite(self.weight):
            raise ConfigError(f"weight: that of {self.name!r} must be a finite number, not {self.weight!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightedReward:
    """Adds rewards up: `total = sum of weight * total` over the parts.

    Components: the unweighted total of each part under its name, and the components that it reports. The component
    `em`, a part's name or what a part reports, decides when a stage of the curriculum is mastered.

    Example:
        >>> import asyncio
        >>> t = Trajectory(id="t", task=Task(query="q"), segments=(), stop_reason="answer")
        >>> right = Part(name="em", reward=lambda trajectory, task: 1.0, weight=0.75)
        >>> long = Part(name="long", reward=lambda trajectory, task: 0.5, weight=-0.5)
        >>> asyncio.run(WeightedReward(parts=(right, long))(t, t.task))
        Score(total=0.5, components={'em': 1.0, 'long': 0.5})
    """

    parts: tuple[Part, ...]
    """The summands, in the order in which they are asked."""

    def __post_init__(self) -> None:
        if not self.parts:
            raise ConfigError("parts: there are none to add up")
        for name, count in Counter(part.name for part in self.parts).items():
            if count > 1:
                raise ConfigError(f"parts: {count} of them are called {name!r}; give each its own name")

    async def __call__(self, trajectory: Trajectory, task: Task) -> Score:
        """Ask every part and add up.

        Raises:
            RewardError: A part reports a component under a name that is taken.
        """
        components: dict[str, float] = {}
        total = 0.0
        for part in self.parts:
            score = await judge(part.reward, trajectory, task, name=part.name)
            total += part.weight * score.total
            for name, value in ((part.name, score.total), *score.components.items()):
                if name in components or (name != part.name and name in self._names):
                    raise RewardError(f"{part.name}: reports {name!r}, a name that is taken; rename the part")
                components[name] = value
        return Score(total=total, components=components)

    @property
    def _names(self) -> set[str]:
        return {part.name for part in self.parts}

    async def aclose(self) -> None:
        """Free what the parts hold."""
        for part in self.parts:
            await close_reward(part.reward)
