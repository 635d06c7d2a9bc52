"""What earlier groups say about how alike the members of a group are."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterable

from icrl.runtime.rollout.beta_binomial import log_beta

__all__ = ["RewardHistory", "fit"]

WINDOW = 512
"""Groups that are remembered; the policy changes, and what is older describes another one."""
ENOUGH = 16
"""Groups that must show a reward before anything is concluded about it."""
REFIT_EVERY = 16
"""Groups between two fits."""

_MEANS = (0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.95, 0.98)
_WEIGHTS = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8)
UNIFORM = (1.0, 1.0)
"""Nothing is known: every probability is as likely as any other."""


def fit(counts: Iterable[tuple[int, int]]) -> tuple[float, float]:
    """Fit a Beta distribution to how many members of each group had a reward.

    It is the maximum of the Beta-binomial likelihood over a grid of means and weights (a + b). Groups that were stopped
    early belong to the data with the members they had: when a group is stopped depends on these members only, so the
    likelihood is the same.

    Args:
        counts: Of every group, the members that had the reward, and all members.

    Example:
        >>> fit([(0, 8), (8, 8)] * 20)
        (0.05, 0.05)
        >>> fit([(4, 8)] * 40)
        (6.4, 6.4)
    """
    seen = Counter(counts)
    grid = [(mean * weight, (1 - mean) * weight) for mean in _MEANS for weight in _WEIGHTS]
    return max(grid, key=lambda beta: _log_likelihood(seen, *beta))


def _log_likelihood(seen: Counter[tuple[int, int]], a: float, b: float) -> float:
    """Sum log B(a + k, b + n - k) / B(a, b) over the groups; the binomial coefficients are the same for all a, b."""
    each = (times * log_beta(a + k, b + n - k) for (k, n), times in seen.items())
    return math.fsum(each) - seen.total() * log_beta(a, b)


class RewardHistory:
    """The rewards of the latest groups, and the Beta distributions fitted to them.

    Example:
        >>> history = RewardHistory()
        >>> history.prior(1.0)
        (1.0, 1.0)
        >>> for _ in range(16):
        ...     history.add([1.0] * 8)
        ...     history.add([0.0] * 8)
        >>> history.prior(1.0)
        (0.05, 0.05)
    """

    def __init__(self) -> None:
        self._groups: deque[Counter[float]] = deque(maxlen=WINDOW)
        self._fitted: dict[float, tuple[float, float]] = {}
        self._added = 0

    def add(self, rewards: Iterable[float]) -> None:
        """Remember the rewards of one group, complete or stopped."""
        counts = Counter(rewards)
        if counts:
            self._groups.append(counts)
            self._added += 1
            if self._added % REFIT_EVERY == 0:
                self._fitted.clear()

    def prior(self, reward: float) -> tuple[float, float]:
        """Return the Beta distribution of the chance that a member of a group has this reward."""
        if reward not in self._fitted:
            self._fitted[reward] = self._fit(reward)
        return self._fitted[reward]

    def _fit(self, reward: float) -> tuple[float, float]:
        if sum(reward in group for group in self._groups) < ENOUGH:
            return UNIFORM
        return fit((group[reward], group.total()) for group in self._groups)
