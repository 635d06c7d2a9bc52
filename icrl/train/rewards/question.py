"""The reward of questions: is the answer right, and has the response the form?"""

from __future__ import annotations

import inspect
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from icrl.errors import ConfigError
from icrl.train.rewards.score import Score, close_reward
from icrl.train.rewards.text import strict
from icrl.trajectory import Segment, Trajectory
from icrl.types import Task

__all__ = ["Matcher", "QuestionReward"]


class Matcher(Protocol):
    """Judges a final answer, plainly or asynchronously; one that holds processes has an async `aclose`."""

    def __call__(self, answer: str | None, task: Task, /) -> Score | Awaitable[Score]:
        """Return what the answer is worth in [0, 1], with at least the component `em`: whether it is right."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionReward:
    """Pays for the right answer, and a little for the form in which it was found.

    `total = em_weight * match + format_weight * format`. Components: those of the matcher, `em` among them, and
    `format`, 0 or 1. The form is the whole response's, never parts of it: paying for a bare call teaches calls without
    answers.

    Example:
        >>> reply = Segment(source="policy", role="text", ids=(1,), text="113", logprobs=(-0.1,))
        >>> t = Trajectory(id="t", task=Task(query="q", answers=("113",)), segments=(reply,), answer="113",
        ...                stop_reason="answer")
        >>> QuestionReward(well_formed=lambda response: False)(t, t.task).total
        0.9
    """

    well_formed: Callable[[Sequence[Segment]], bool]
    """Whether the response segments have the dialect's whole form."""
    match: Matcher = strict
    """Judges the answer."""
    em_weight: float = 0.9
    """Reward of a match."""
    format_weight: float = 0.1
    """Reward of the whole form."""

    def __post_init__(self) -> None:
        for name in ("em_weight", "format_weight"):
            if not (math.isfinite(weight := getattr(self, name)) and weight >= 0):
                raise ConfigError(f"{name}: must be a finite number >= 0, not {weight!r}")

    def __call__(self, trajectory: Trajectory, task: Task) -> Score | Awaitable[Score]:
        """Score `trajectory.answer`, which the dialect read from the response, and the response's form.

        Returns:
            A score, to be awaited if and only if the matcher's is.
        """
        match = self.match(trajectory.answer, task)
        return self._later(match, trajectory) if inspect.isawaitable(match) else self._sum(match, trajectory)

    async def _later(self, match: Awaitable[Score], trajectory: Trajectory) -> Score:
        return self._sum(await match, trajectory)

    def _sum(self, match: Score, trajectory: Trajectory) -> Score:
        form = float(self.well_formed(trajectory.response))
        return Score(
            total=self.em_weight * match.total + self.format_weight * form,
            components={**match.components, "format": form},
        )

    async def aclose(self) -> None:
        """Free what the matcher holds."""
        await close_reward(self.match)
