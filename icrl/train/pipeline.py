"""Steps whose rollouts are under way while earlier steps are still being learnt from.

With a staleness of 0, a step is rolled out when the trainer asks for it. With a staleness of S, the rollouts of step
n + S begin as soon as those of step n are complete: they overlap S updates, and are sampled under weights that are at
most S updates older than those they are used on. A weight update in between does not end them; their later tokens
carry the new version.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from anyio.from_thread import BlockingPortal

from icrl.trajectory import Group

__all__ = ["Pipeline", "RolledOut"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RolledOut:
    """The rollouts of one step."""

    groups: Sequence[Group]
    """What came of them."""
    stage: int
    """Stage of the curriculum that their prompts belong to."""
    version: int | None
    """Weight version that the engine held when they began."""
    wait_s: float
    """Seconds that the trainer waited for them."""
    wall_s: float
    """Seconds from their start to their end."""


class Pipeline:
    """Begins the rollouts of steps in order, and hands them out in order.

    Args:
        portal: Leads into the event loop's thread.
        roll_out: Rolls out a step of a stage; called in the event loop's thread.
        stage: Tells the stage of the step that begins now, from those of the steps that were begun and not taken yet.
        version: Tells the weight version that the engine holds; asked then, too.
        staleness: Updates that a step's rollouts may overlap.
        last: The last step there is.
    """

    def __init__(
        self,
        portal: BlockingPortal,
        roll_out: Callable[[int, int], Awaitable[Sequence[Group]]],
        *,
        stage: Callable[[Sequence[int]], int],
        version: Callable[[], int | None],
        staleness: int,
        last: int,
    ) -> None:
        self._portal = portal
        self._roll_out = roll_out
        self._stage = stage
        self._version = version
        self._staleness = staleness
        self._last = last
        self._begun: dict[int, tuple[int, int | None, Future[Any]]] = {}

    def take(self, step: int) -> RolledOut:
        """Wait for the rollouts of a step, which begin now if they have not yet."""
        asked = time.monotonic()
        self._begin(range(step, step + max(1, self._staleness)))
        stage, version, rolling = self._begun.pop(step)
        groups, wall_s = rolling.result()
        wait_s = time.monotonic() - asked
        return RolledOut(groups=groups, stage=stage, version=version, wait_s=wait_s, wall_s=wall_s)

    def overlap(self, step: int) -> None:
        """Begin what may run while the trainer learns from `step`."""
        if self._staleness:
            self._begin(range(step + 1, step + 1 + self._staleness))

    def rest(self) -> list[Group]:
        """Return what was rolled out for steps that nobody will ask for; to be called once their runs were stopped."""
        begun, self._begun = self._begun, {}
        return [group for _, _, rolling in begun.values() if not rolling.exception() for group in rolling.result()[0]]

    def _begin(self, steps: range) -> None:
        for step in steps:
            if step not in self._begun and step <= self._last:
                stage, version = self._stage([stage for stage, _, _ in self._begun.values()]), self._version()
                self._begun[step] = stage, version, self._portal.start_task_soon(self._timed, step, stage)

    async def _timed(self, step: int, stage: int) -> tuple[Sequence[Group], float]:
        started = time.monotonic()
        groups = await self._roll_out(step, stage)
        return groups, time.monotonic() - started
