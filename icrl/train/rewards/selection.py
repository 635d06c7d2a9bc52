"""Rewards by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from icrl.errors import ConfigError, nearest
from icrl.runtime.sandbox.result import Executor
from icrl.train.rewards.efficiency import EfficientReward
from icrl.train.rewards.mathematics import MathMatcher
from icrl.train.rewards.programs import ProgramMatcher
from icrl.train.rewards.question import Matcher, QuestionReward
from icrl.train.rewards.robust import robust
from icrl.train.rewards.score import Reward, load_reward
from icrl.train.rewards.sets import same_set
from icrl.train.rewards.text import overlap, strict
from icrl.trajectory import Segment

__all__ = ["REWARDS", "find_matcher", "find_reward"]

_PLAIN: dict[str, Matcher] = {"question": strict, "f1": overlap, "robust": robust, "set": same_set}

REWARDS = (*_PLAIN, "math", "programs")
"""The names of the built-in rewards."""


def find_matcher(name: str, *, executor: Callable[[], Executor]) -> Matcher:
    """Return the matcher of a built-in reward.

    Args:
        name: One of `REWARDS`.
        executor: Makes what runs programs; called for `programs` only.

    Raises:
        ConfigError: There is no such reward.
        MissingExtraError: It needs a package that is not installed.

    Example:
        >>> find_matcher("robust", executor=lambda: None) is robust
        True
    """
    if name == "math":
        return MathMatcher()
    if name == "programs":
        return ProgramMatcher(executor=executor())
    if name not in _PLAIN:
        known = f"{', '.join(REWARDS)}, or module:name of your own"
        raise ConfigError(f"reward: {name!r} is not one of {known}.{nearest(name, REWARDS)}")
    return _PLAIN[name]


def find_reward(
    spec: str,
    *,
    well_formed: Callable[[Sequence[Segment]], bool],
    executor: Callable[[], Executor],
    em_weight: float = 0.9,
    format_weight: float = 0.1,
    call_penalty: float = 0.0,
) -> Reward:
    """Return a reward by name; whoever uses it closes it with `close_reward`.

    Args:
        spec: One of `REWARDS`, or `module:name` of a user's own.
        well_formed: Whether a response has the dialect's whole form, `Dialect.well_formed`.
        executor: Makes what runs programs; called for `programs` only.
        em_weight: What a match is worth; for built-in rewards.
        format_weight: What the form is worth; for built-in rewards.
        call_penalty: What a needless tool call takes off the reward of a right answer, see `EfficientReward`.

    Raises:
        ConfigError: There is no such reward, or a weight is wrong.
        MissingExtraError: It needs a package that is not installed.

    Example:
        >>> find_reward("maths", well_formed=bool, executor=lambda: None)
        Traceback (most recent call last):
        icrl.errors.ConfigError: reward: 'maths' is not one of question, f1, robust, set, math, programs,
        or module:name of your own. Did you mean 'math'?
    """
    reward: Reward = (
        load_reward(spec)
        if ":" in spec
        else QuestionReward(
            well_formed=well_formed,
            match=find_matcher(spec, executor=executor),
            em_weight=em_weight,
            format_weight=format_weight,
        )
    )
    return EfficientReward(reward=reward, penalty=call_penalty) if call_penalty else reward
