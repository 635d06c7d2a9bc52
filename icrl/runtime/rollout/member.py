"""One trajectory in progress, from its slot to its reward."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field, replace
from typing import Any

from icrl.runtime.rollout.group import OpenGroup
from icrl.runtime.run import Run
from icrl.seeds import seed_for
from icrl.trajectory import Failure, StopReason, Trajectory

__all__ = ["Member"]


@dataclass(slots=True, eq=False, kw_only=True)
class Member:
    """A member of a group that has started."""

    group: OpenGroup
    """Where it belongs."""
    index: int
    """Its position there."""
    attempt: int = 0
    """How many members failed in its place before."""
    run: Run | None = None
    """What it runs, once it does."""
    task: asyncio.Task[Any] | None = None
    """The task that does."""
    trajectory: Trajectory | None = None
    """What came of the run; from then on it is being judged."""
    since: float = field(default_factory=time.monotonic)
    """When the run, or the judging, began."""
    holds_slot: bool = False
    """Whether a slot is taken for it."""
    unwanted: bool = False
    """Whether its group does without it."""
    settled: bool = False
    """Whether its group knows what became of it."""
    reason: StopReason | None = None
    """Why it was told to end."""
    failure: Failure | None = None
    """What failed, where `reason.failed`."""
    told_at: float | None = None
    """When it was told to end."""
    cancelled_at: float | None = None
    """When its task was cancelled because it did not."""
    abandoned: bool = False
    """Whether its task was left behind."""

    @property
    def id(self) -> str:
        """Trajectory id; a member that is made anew carries the number of its attempt."""
        again = f".{self.attempt}" if self.attempt else ""
        return f"{self.group.plan.id}{self.index}{again}"

    @property
    def seed(self) -> int:
        """The seed of its own random stream."""
        seed = self.group.plan.seed
        return seed_for(seed, self.index, "attempt", self.attempt) if self.attempt else seed_for(seed, self.index)

    @property
    def judged(self) -> bool:
        """Whether its run has ended and its reward is being found."""
        return self.trajectory is not None

    @property
    def cancelled_alone(self) -> bool:
        """Whether its task was cancelled because it hung, and not with everything else of its caller."""
        return self.cancelled_at is not None and not self.settled and not self.group.batch.closed

    def stop(self, reason: StopReason, failure: Failure | None = None) -> None:
        """Tell the run to end with what it has; only the first reason counts."""
        if self.judged or self.reason is not None:
            return
        self.reason, self.failure, self.told_at = reason, failure, time.monotonic()
        if self.run is not None:
            self.run.stop(reason, failure)

    def cancel(self, reason: StopReason, failure: Failure | None = None) -> None:
        """End its task; the trajectory is what was recorded, labelled with the first reason that was given."""
        if self.reason is None:
            self.reason, self.failure = reason, failure
        self.cancelled_at = time.monotonic()
        if self.task is not None:
            self.task.cancel()

    def broken(self, failure: Failure) -> None:
        """Label what there will be of it with what broke, unless it was told to end before."""
        if self.reason is None:
            self.reason, self.failure = StopReason.ERROR, failure

    def ended(self, trajectory: Trajectory) -> None:
        """Take what came of the run, and go on to be judged."""
        if self.failure is not None and trajectory.stop_reason is StopReason.ERROR:
            # An engine that hangs does not answer its abort either; what it was told to end for says more.
            trajectory = self._labelled(trajectory)
        self.trajectory, self.since = trajectory, time.monotonic()
        self.reason = self.failure = self.told_at = self.cancelled_at = None

    def cut(self) -> Trajectory:
        """Return what there is of the trajectory, labelled with why it was told to end."""
        if self.trajectory is not None:
            # A trajectory that nobody wants judged is what it was; one that could not be judged has failed.
            return self.trajectory if self.failure is None else self._labelled(self.trajectory)
        wall_s = time.monotonic() - self.since
        partial = self.run.recording.trajectory()  # type: ignore[union-attr]  # whoever is cancelled alone has begun
        return self._labelled(replace(partial, wall_s=wall_s))

    def _labelled(self, trajectory: Trajectory) -> Trajectory:
        return replace(trajectory, stop_reason=self.reason or _ABORTED, error=self.failure, answer=None)


_ABORTED = StopReason.ABORTED
