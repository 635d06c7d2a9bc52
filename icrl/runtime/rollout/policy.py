"""What becomes of trajectories that fail or stall, and of groups that teach nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from icrl.errors import ConfigError, nearest

__all__ = ["FailedPolicy", "RolloutPolicy"]

FailedPolicy = Literal["keep", "replace", "drop"]
"""Leave a failed trajectory in its group (where training skips it), make another in its place, or leave it out."""

_SECONDS = ("stall_s", "score_timeout_s", "grace_s", "probe_every_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutPolicy:
    """How a `Rollout` treats what does not go to plan.

    Example:
        >>> RolloutPolicy(failed="retry")
        Traceback (most recent call last):
        icrl.errors.ConfigError: failed: 'retry' is not one of keep, replace, drop.
        >>> RolloutPolicy(failed="replace", stop_groups_below=0.05).attempts
        3
    """

    failed: FailedPolicy = "keep"
    """What becomes of a trajectory that something other than the policy ended (`StopReason.failed`)."""
    attempts: int = 3
    """Trajectories that are made for one member at most under `failed="replace"`; the last is kept, failed or not."""
    step_deadline_s: float | None = None
    """Seconds after which everything unfinished in one `collect` or `groups` ends as it is; `None` waits."""
    stall_s: float = 300.0
    """Seconds that a trajectory may wait for one engine call, or for the tools of one turn; an engine's queue and its
    weight updates are part of the wait."""
    score_timeout_s: float = 600.0
    """Seconds that the reward of one trajectory may take."""
    grace_s: float = 10.0
    """Seconds that whatever was told to end may take to do so; then it is cancelled, and as long after that, left."""
    stop_groups_below: float | None = None
    """End the rest of a group whose finished members all have one reward when the chance that the rest differs is
    below this; `None` never does. Saves tokens, and loses the groups that would have differed; not for evaluation."""
    stop_after: int = 4
    """Members that must have finished before their group may be stopped."""
    stop_prior: tuple[float, float] | None = None
    """Beta distribution (a, b) of the chance that a member has the reward that the finished ones share; `None` fits
    it to the groups seen so far, beginning with (1, 1)."""
    feedback: bool = True
    """Follow the load of an engine that can be asked for it; any other engine has `concurrency` trajectories."""
    min_concurrency: int = 8
    """Trajectories in flight that the engine's load never goes below."""
    probe_every_s: float = 1.0
    """Seconds between two questions for the engine's load."""

    def __post_init__(self) -> None:
        kinds = get_args(FailedPolicy)
        if self.failed not in kinds:
            hint = nearest(self.failed, kinds)
            raise ConfigError(f"failed: {self.failed!r} is not one of {', '.join(kinds)}.{hint}")
        for name in ("attempts", "stop_after", "min_concurrency"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: must be >= 1, not {getattr(self, name)!r}")
        for name in _SECONDS:
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name}: must be > 0 seconds, not {getattr(self, name)!r}")
        if self.step_deadline_s is not None and not self.step_deadline_s > 0:
            raise ConfigError(f"step_deadline_s: must be > 0 seconds or none, not {self.step_deadline_s!r}")
        if self.stop_groups_below is not None and not 0 < self.stop_groups_below < 1:
            raise ConfigError(f"stop_groups_below: must be in (0, 1) or none, not {self.stop_groups_below!r}")
        if self.stop_prior is not None and not min(self.stop_prior) > 0:
            raise ConfigError(f"stop_prior: both parameters must be > 0, not {self.stop_prior!r}")
