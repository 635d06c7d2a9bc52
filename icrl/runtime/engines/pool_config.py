"""What can be set about an engine pool."""

from __future__ import annotations

from dataclasses import dataclass

from icrl.errors import ConfigError

__all__ = ["PoolConfig"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolConfig:
    """What can be set about an engine pool.

    Example:
        >>> PoolConfig(give_up_s=60.0).spill_over
        8
    """

    give_up_s: float = 300.0
    """Seconds for which a request may keep failing, or find no server, without a new token before it fails for good.
    Weights wait as long for a server to come back where none is there."""
    first_wait_s: float = 0.1
    """Bound of the first wait before a request is tried again; it doubles with every failure in a row."""
    longest_wait_s: float = 5.0
    """Bound of any such wait. Waits are drawn evenly between 0 and their bound."""
    spill_over: int = 8
    """Requests by which a server that holds a session's prefix may be ahead of the least busy one and still get it."""
    probe_every_s: float = 2.0
    """Seconds between two probes of a server, give or take a quarter."""
    probe_timeout_s: float = 10.0
    """Seconds in which a server has to answer a probe, or to say what it is after it came back."""
    probes: int = 5
    """How many of its last probes a server is judged by."""
    probe_failures: int = 3
    """How many of these may fail before it is ejected; a refused connection ejects it at once."""
    control_timeout_s: float = 60.0
    """Seconds in which a server has to pause or to resume."""
    update_timeout_s: float = 600.0
    """Seconds in which a server has to take weights."""
    abort_grace_s: float = 10.0
    """Seconds in which a server has to hand over what it has of a request that is aborted there; then what it has is
    lost."""
    keep_weights: bool = True
    """Keep a copy of the last weights in this process, so that a server that was away gets them when it is back;
    otherwise it stays out until the next update."""
    sessions: int = 65_536
    """Sessions whose server is remembered; the one that was used least recently is forgotten first."""
    prefixes: int = 4096
    """Shared prefixes whose servers are remembered, likewise."""

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if value is not False and not value > 0:
                raise ConfigError(f"PoolConfig.{name}: must be > 0, not {value!r}")
        if self.probe_failures > self.probes:
            raise ConfigError(
                f"PoolConfig.probe_failures: must be <= probes ({self.probes}), not {self.probe_failures}"
            )
