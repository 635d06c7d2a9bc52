"""Shaping for tool efficiency: the same right answer is worth a little less if it took needless calls."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from icrl.errors import ConfigError, DataError, RewardError
from icrl.train.rewards.score import Reward, Score, close_reward, judge
from icrl.trajectory import Trajectory
from icrl.types import Task

__all__ = ["EfficientReward"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EfficientReward:
    """Takes a bounded penalty for each needless tool call off the reward of a right answer.

    `total = inner - em * min(bound, penalty * max(0, calls - needed))`, where `calls` counts every call of the
    response, failed ones included, and `needed` is `task.metadata["needed_calls"]`, or the field. Wrong answers lose
    nothing, so that exploring is never punished, and the bound keeps a right answer with many calls above a wrong one.
    The idea that efficiency may count among right answers only is that of OTC, arXiv 2504.14870; its cosine has no
    bound of this kind, and this penalty needs no statistics of the group.

    Components: those of the inner reward, and `excess_calls`, a count.

    Example:
        >>> import asyncio
        >>> from icrl.trajectory import Segment
        >>> from icrl.types import ToolCall
        >>> reply = Segment(source="policy", role="text", ids=(1,), logprobs=(-0.1,), calls=(ToolCall(name="f"),) * 3)
        >>> t = Trajectory(id="t", task=Task(query="q"), segments=(reply,), stop_reason="answer")
        >>> right = lambda trajectory, task: Score(total=1.0, components={"em": 1.0})
        >>> asyncio.run(EfficientReward(reward=right, penalty=0.05)(t, t.task))
        Score(total=0.9, components={'em': 1.0, 'excess_calls': 2.0})
    """

    reward: Reward
    """The reward that is shaped; it has to report `em`."""
    penalty: float
    """What one needless call costs."""
    bound: float = 0.2
    """What all needless calls cost together at most."""
    needed: int = 1
    """Calls that a task needs which does not say so itself."""

    def __post_init__(self) -> None:
        for name in ("penalty", "bound"):
            if not (math.isfinite(value := getattr(self, name)) and value >= 0):
                raise ConfigError(f"{name}: must be a finite number >= 0, not {value!r}")
        if self.needed < 0:
            raise ConfigError(f"needed: must be >= 0, not {self.needed!r}")

    async def __call__(self, trajectory: Trajectory, task: Task) -> Score:
        """Score with the inner reward, then shape.

        Raises:
            RewardError: The inner reward does not report `em`.
            DataError: `needed_calls` of the task is not a whole number >= 0.
        """
        score = await judge(self.reward, trajectory, task, name=type(self.reward).__name__)
        if "em" not in score.components:
            raise RewardError("the reward that is shaped for efficiency has to report the component 'em'")
        excess = max(0, len(trajectory.calls) - _needed(task.metadata.get("needed_calls", self.needed)))
        shaped = score.total - score.components["em"] * min(self.bound, self.penalty * excess)
        return Score(total=shaped, components={**score.components, "excess_calls": float(excess)})

    async def aclose(self) -> None:
        """Free what the inner reward holds."""
        await close_reward(self.reward)


def _needed(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise DataError(f"metadata.needed_calls: must be a whole number >= 0, not {value!r}")
    return value
