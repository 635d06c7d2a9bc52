"""What goes wrong with requests, by share or by number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from icrl.errors import ConfigError, nearest
from icrl.seeds import seed_for

__all__ = ["Fault", "Faults"]

Fault = Literal["error_500", "error_429", "resets", "slow", "truncated", "garbage", "dies_mid_stream"]
"""One way in which a request goes wrong."""

_KINDS: tuple[Fault, ...] = get_args(Fault)


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """Which requests go wrong, and how; the rest are answered.

    What becomes of a request depends on its number (from 0, in the order of arrival) and the seed only.

    Example:
        >>> faults = Faults(error_500=0.5, at={0: "resets"})
        >>> [faults.of(number) for number in range(4)]
        ['resets', 'error_500', 'error_500', 'error_500']
    """

    error_500: float = 0.0
    """Share of requests that are answered with status 500."""
    error_429: float = 0.0
    """Share that is answered with status 429."""
    resets: float = 0.0
    """Share whose connection breaks before a byte of the reply."""
    slow: float = 0.0
    """Share that is answered `slow_s` later."""
    truncated: float = 0.0
    """Share whose reply ends in the middle, as if it were complete."""
    garbage: float = 0.0
    """Share that is answered with status 200 and something that is not JSON."""
    dies_mid_stream: float = 0.0
    """Share whose connection breaks in the middle of the reply."""
    at: Mapping[int, Fault] = field(default_factory=dict)
    """What becomes of single requests, by number."""
    slow_s: float = 1.0
    """Seconds that a slow request waits."""
    seed: int = 0
    """Chooses which requests."""

    def __post_init__(self) -> None:
        for fault in self.at.values():
            if fault not in _KINDS:
                raise ConfigError(f"Faults.at: {fault!r} is no fault.{nearest(fault, _KINDS)}")
        shares = [getattr(self, kind) for kind in _KINDS]
        if min(shares) < 0 or sum(shares) > 1:
            raise ConfigError(f"Faults: shares must be >= 0 and add up to 1 at most, not to {sum(shares):g}")

    def of(self, number: int) -> Fault | None:
        """Return what goes wrong with a request, or `None`."""
        if number in self.at:
            return self.at[number]
        drawn = seed_for(self.seed, "request", number) % 1_000_000 / 1_000_000
        for kind in _KINDS:
            share: float = getattr(self, kind)
            if drawn < share:
                return kind
            drawn -= share
        return None
