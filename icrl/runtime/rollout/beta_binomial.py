"""The chance that a group whose finished members all have one reward still becomes informative.

Let a member of the group have that reward with probability p, independently of the others, and let p have the
distribution Beta(a, b). After m members that all have it, p has Beta(a + m, b), and the next r all have it with
probability

    E[p^r] = B(a + m + r, b) / B(a + m, b) = prod_{i=0}^{r-1} (a + m + i) / (a + b + m + i)

(the Beta-binomial distribution at r of r). The group becomes informative otherwise.
"""

from __future__ import annotations

import math

from icrl.errors import ConfigError

__all__ = ["chance_informative", "log_beta"]


def log_beta(a: float, b: float) -> float:
    """Return the logarithm of the Beta function.

    Example:
        >>> round(log_beta(2, 3), 6) == round(math.log(1 / 12), 6)
        True
    """
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def chance_informative(finished: int, remaining: int, *, a: float = 1.0, b: float = 1.0) -> float:
    """Return the chance that one of the remaining members differs from the finished ones, which are all equal.

    Args:
        finished: Members m that have one and the same reward.
        remaining: Members r whose reward is not known.
        a: First parameter of the Beta distribution of the chance that a member has that reward.
        b: Second parameter.

    Returns:
        A probability; with a = b = 1 it is r / (m + r + 1).

    Raises:
        ConfigError: A parameter of the distribution is not positive, or a number of members is negative.

    Example:
        >>> round(chance_informative(4, 4), 4), round(chance_informative(4, 4, a=0.3, b=0.1), 4)
        (0.4444, 0.0686)
    """
    if min(finished, remaining) < 0 or not (a > 0 and b > 0):
        raise ConfigError(f"chance_informative: needs members >= 0 and a, b > 0, not {finished}, {remaining}, {a}, {b}")
    # 1 - exp(x) loses all digits where x is small, which is where it is compared with a small bound.
    agree = sum(math.log1p(-b / (a + b + finished + i)) for i in range(remaining))
    return -math.expm1(agree)
