"""What a reward is and says, and the guard around every reward."""

from __future__ import annotations

import inspect
import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from icrl.errors import ConfigError, RewardError
from icrl.imports import import_attribute
from icrl.trajectory import Trajectory
from icrl.types import Task

__all__ = ["Reward", "Score", "checked", "close_reward", "judge", "load_reward"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """What a reward says about one trajectory.

    Example:
        >>> Score(total=0.9, components={"em": 1.0, "format": 0.0}).components["em"]
        1.0
    """

    total: float
    """The reward that training sees."""
    components: Mapping[str, float] = field(default_factory=dict)
    """Its parts by name, unweighted; for reports and the variance monitor."""


class Reward(Protocol):
    """Judges the response of a finished trajectory; may be a plain or an async function, or an object.

    A plain function runs on the event loop, so one that waits for anything has to be async. An object that holds
    processes or connections has an async `aclose` as well, see `close_reward`.
    """

    def __call__(self, trajectory: Trajectory, task: Task, /) -> Score | float | Awaitable[Score | float]:
        """Return a score, or a number where there are no parts to report."""
        ...


async def judge(reward: Reward, trajectory: Trajectory, task: Task, *, name: str) -> Score:
    """Ask a reward of any kind.

    Args:
        reward: What to ask.
        trajectory: What it judges.
        task: What was asked of the model.
        name: For messages.

    Returns:
        Its score, all finite floats.

    Raises:
        RewardError: It returned anything but finite numbers.

    Example:
        >>> import asyncio
        >>> from icrl.trajectory import StopReason
        >>> t = Trajectory(id="t", task=Task(query="q"), segments=(), stop_reason=StopReason.END_OF_TURN)
        >>> asyncio.run(judge(lambda trajectory, task: 1, t, t.task, name="one"))
        Score(total=1.0, components={})
    """
    return _finite(await _ask(reward, trajectory, task), f"{name}: trajectory {trajectory.id}")


async def _ask(reward: Reward, trajectory: Trajectory, task: Task) -> Any:
    judged = reward(trajectory, task)
    return await judged if inspect.isawaitable(judged) else judged


def _finite(value: Any, where: str) -> Score:
    score = value if isinstance(value, Score) else Score(total=value)
    for name, part in {"total": score.total, **score.components}.items():
        try:
            finite = math.isfinite(part)
        except (TypeError, OverflowError):
            finite = False
        if not finite:
            raise RewardError(f"{where}: {name} must be a finite number, not {part!r}")
    parts = {name: float(part) for name, part in score.components.items()}
    return Score(total=float(score.total), components=parts)


def checked(reward: Reward) -> Callable[[Trajectory, Task], Awaitable[Score]]:
    """Wrap a reward for the rollout scheduler.

    The wrapped reward sees no prompt. A trajectory that infrastructure broke scores 0 without being judged, and
    `Group.scored` leaves it out of training.

    Returns:
        An async function; it raises `RewardError` where the reward raises or returns anything but finite numbers.

    Example:
        >>> import asyncio
        >>> from icrl.trajectory import StopReason
        >>> t = Trajectory(id="t", task=Task(query="q"), segments=(), stop_reason=StopReason.END_OF_TURN)
        >>> asyncio.run(checked(lambda trajectory, task: 0.5)(t, t.task))
        Score(total=0.5, components={})
    """
    name = getattr(reward, "__qualname__", type(reward).__name__)

    async def score(trajectory: Trajectory, task: Task) -> Score:
        if trajectory.failed:
            return Score(total=0.0)
        try:
            value = await _ask(reward, replace(trajectory, segments=trajectory.response), task)
        except Exception as error:
            raise RewardError(f"{name}: trajectory {trajectory.id}: {type(error).__name__}: {error}") from error
        return _finite(value, f"{name}: trajectory {trajectory.id}")

    return score


async def close_reward(reward: object) -> None:
    """Free what a reward or matcher holds, if it holds anything; to be awaited where it was used.

    Example:
        >>> import asyncio
        >>> asyncio.run(close_reward(lambda trajectory, task: 1.0))
    """
    aclose = getattr(reward, "aclose", None)
    if aclose is not None:
        await aclose()


def load_reward(spec: str) -> Reward:
    """Import a user's reward, written `module:name`; modules of the working directory are found.

    Raises:
        ConfigError: There is no such module or name, or it cannot be called.

    Example:
        >>> load_reward("icrl.train.rewards:exact_mach")
        Traceback (most recent call last):
        icrl.errors.ConfigError: reward: icrl.train.rewards has no 'exact_mach'. Did you mean 'exact_match'?
    """
    reward = import_attribute(spec, setting="reward")
    if not callable(reward):
        raise ConfigError(f"reward: {spec} is {type(reward).__name__}, which cannot be called")
    return reward  # type: ignore[no-any-return]
