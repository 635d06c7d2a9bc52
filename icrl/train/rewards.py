"""Rewards: a trajectory and its task become a number and named parts.

A reward reads the response only. `checked` makes that true of every reward, a user's too: it takes the prompt away
before the reward sees the trajectory, so demonstrations in the prompt can never be paid for.

    normalize, exact_match, f1     SQuAD's metrics
    QuestionReward                 weighted exact match and form
    checked, load_reward           a user's function, guarded
"""

from __future__ import annotations

import inspect
import math
import re
import string
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from icrl.errors import ConfigError, DataError, RewardError
from icrl.imports import import_attribute
from icrl.trajectory import Segment, StopReason, Trajectory
from icrl.types import Task

__all__ = ["QuestionReward", "Reward", "Score", "checked", "exact_match", "f1", "load_reward", "normalize"]

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


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

    A plain function runs on the event loop, so one that waits for anything has to be async.
    """

    def __call__(self, trajectory: Trajectory, task: Task, /) -> Score | float | Awaitable[Score | float]:
        """Return a score, or a number where there are no parts to report."""
        ...


def normalize(text: str) -> str:
    """Normalise an answer as SQuAD does: lower case, no ASCII punctuation, no articles, single spaces.

    Source: Rajpurkar et al., SQuAD, arXiv 1606.05250, and its evaluation script.

    Example:
        >>> normalize("The  U.S. (state)")
        'us state'
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def _normal_golds(golds: Iterable[str]) -> list[str]:
    """Normalise reference answers; one that vanishes would match every other that vanishes."""
    normal = []
    for gold in golds:
        if not (words := normalize(gold)):
            raise DataError(f"answers: {gold!r} is empty after normalisation, so nothing could match it")
        normal.append(words)
    return normal


def exact_match(prediction: str | None, golds: Iterable[str]) -> float:
    """Return 1.0 if the normalised prediction equals any normalised gold, else 0.0.

    Raises:
        DataError: A gold normalises to nothing.

    Example:
        >>> exact_match("The Hague", ["Hague"]), exact_match("the", ["Hague"])
        (1.0, 0.0)
    """
    words = normalize(prediction or "")
    return float(words in _normal_golds(golds) and words != "")


def f1(prediction: str | None, golds: Iterable[str]) -> float:
    """Return the best F1 between the bags of normalised words of the prediction and of a gold, in [0, 1].

    Raises:
        DataError: A gold normalises to nothing.

    Example:
        >>> f1("in May 2001", ["May 5, 2001"])
        0.6666666666666666
    """
    words = normalize(prediction or "").split()
    return max((_overlap(words, gold.split()) for gold in _normal_golds(golds)), default=0.0)


def _overlap(words: Sequence[str], gold: Sequence[str]) -> float:
    shared = (Counter(words) & Counter(gold)).total()
    return 2 * shared / (len(words) + len(gold))


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionReward:
    """Pays for the right answer, and a little for the form in which it was found.

    Components: `em` and `format`, each 0 or 1. The form is the whole response's, never parts of it: paying for a bare
    call teaches calls without answers.

    Example:
        >>> reply = Segment(source="policy", role="text", ids=(1,), text="113", logprobs=(-0.1,))
        >>> t = Trajectory(id="t", task=Task(query="q", answers=("113",)), segments=(reply,), answer="113",
        ...                stop_reason=StopReason.ANSWER)
        >>> QuestionReward(well_formed=lambda response: False)(t, t.task).total
        0.9
    """

    well_formed: Callable[[Sequence[Segment]], bool]
    """Whether the response segments have the dialect's whole form."""
    em_weight: float = 0.9
    """Reward of an exact match."""
    format_weight: float = 0.1
    """Reward of the whole form."""

    def __post_init__(self) -> None:
        for name in ("em_weight", "format_weight"):
            if not (math.isfinite(weight := getattr(self, name)) and weight >= 0):
                raise ConfigError(f"{name}: must be a finite number >= 0, not {weight!r}")

    def __call__(self, trajectory: Trajectory, task: Task) -> Score:
        """Score `trajectory.answer`, which the dialect read from the response, and the response's form."""
        em = exact_match(trajectory.answer, task.answers)
        form = float(self.well_formed(trajectory.response))
        return Score(
            total=self.em_weight * em + self.format_weight * form,
            components={"em": em, "format": form},
        )


def checked(reward: Reward) -> Callable[[Trajectory, Task], Awaitable[Score]]:
    """Wrap a reward for the rollout scheduler.

    The wrapped reward sees no prompt. A trajectory that infrastructure broke scores 0 without being judged, and
    `Group.scored` leaves it out of training.

    Returns:
        An async function; it raises `RewardError` where the reward raises or returns anything but finite numbers.

    Example:
        >>> import asyncio
        >>> t = Trajectory(id="t", task=Task(query="q"), segments=(), stop_reason=StopReason.END_OF_TURN)
        >>> asyncio.run(checked(lambda trajectory, task: 0.5)(t, t.task))
        Score(total=0.5, components={})
    """
    name = getattr(reward, "__qualname__", type(reward).__name__)

    async def score(trajectory: Trajectory, task: Task) -> Score:
        if trajectory.stop_reason is StopReason.ERROR:
            return Score(total=0.0)
        try:
            judged = reward(replace(trajectory, segments=trajectory.response), task)
            value = await judged if inspect.isawaitable(judged) else judged
        except Exception as error:
            raise RewardError(f"{name}: trajectory {trajectory.id}: {type(error).__name__}: {error}") from error
        return _finite(value, f"{name}: trajectory {trajectory.id}")

    return score


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
