"""How many trajectories may be in flight, by how busy the engine is.

Additive increase, multiplicative decrease, as in TCP (Chiu and Jain 1989): the window grows while the engine's queue
is empty and its memory has room, shrinks where either is full, and rests in between. A smaller window ends nothing:
it lets trajectories end, and begins no others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

from icrl.errors import ConfigError, EngineError
from icrl.runtime.engines.protocol import EngineLoad
from icrl.runtime.rollout.slots import Slots
from icrl.runtime.rollout.tally import Ledger

__all__ = ["Window", "follow"]

ROOM = 0.6
"""Share of the memory for keys and values below which more may be asked of the engine."""
FULL = 0.9
"""Share above which it is about to throw out what it has computed."""
LONG_QUEUE = 0.25
"""Waiting requests, as a share of those that run, from which on waiting is all that more trajectories would do."""
CUT = 0.75
"""What is left of the window after a cut."""
STEPS = 16
"""Steps from nothing to the largest window."""
PROBE_TIMEOUT_S = 5.0
"""Seconds that an engine has to say how busy it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """How many trajectories may be in flight; a value that `after` makes another of.

    Example:
        >>> window = Window(limit=64, minimum=8, maximum=64)
        >>> window.after(EngineLoad(running=64, waiting=0, kv_usage=0.95), in_flight=64).limit
        48
        >>> Window(limit=48, minimum=8, maximum=64).after(
        ...     EngineLoad(running=48, waiting=0, kv_usage=0.5), in_flight=48).limit
        52
    """

    limit: int
    """Trajectories that may be in flight now."""
    minimum: int
    """It never goes below this."""
    maximum: int
    """It never goes above this."""

    def __post_init__(self) -> None:
        if not 1 <= self.minimum <= self.limit <= self.maximum:
            raise ConfigError(f"Window: needs 1 <= minimum <= limit <= maximum, not {self}")

    def after(self, load: EngineLoad, *, in_flight: int) -> Window:
        """Return the window for the time after the engine said how busy it is.

        Args:
            load: What it said.
            in_flight: Trajectories in flight then.
        """
        if load.kv_usage > FULL or load.waiting > max(1.0, LONG_QUEUE * load.running):
            # What the last cut has taken is still in flight: its effect has to be seen before the next.
            return self if in_flight > self.limit else self._of(int(self.limit * CUT))
        if load.waiting == 0 and load.kv_usage < ROOM and in_flight >= self.limit:
            return self._of(self.limit + max(1, self.maximum // STEPS))
        return self

    def _of(self, limit: int) -> Window:
        return replace(self, limit=min(self.maximum, max(self.minimum, limit)))


async def follow(
    probe: Callable[[], Awaitable[EngineLoad]],
    window: Window,
    slots: Slots[Any],
    *,
    ledger: Ledger,
    every_s: float,
    changed: Callable[[], None],
) -> None:
    """Set the number of slots by the engine's load, until cancelled.

    Rollouts go on while the engine is asked, and where it gives no answer the number stays as it is.

    Args:
        probe: Asks the engine.
        window: Where to begin.
        slots: What to set.
        ledger: Counts failed questions.
        every_s: Seconds between two questions.
        changed: Called when there may be more slots.
    """
    while True:
        await asyncio.sleep(every_s)
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                load = await probe()
        except (EngineError, TimeoutError):
            ledger.add("probes_failed")
            continue
        except asyncio.CancelledError:
            if _cancelled():  # by somebody else than the probe itself
                raise
            ledger.add("probes_failed")
            continue
        window = window.after(load, in_flight=slots.used)
        slots.limit = window.limit
        changed()


def _cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
