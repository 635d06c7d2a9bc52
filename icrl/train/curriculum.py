"""How many demonstrations each prompt shows, step by step, until none is left.

A schedule is written `3:40,2:15,1:15,0:40`: stages of *shots*`:`*most steps*. A stage ends early once the policy has
mastered it (the mean success of its last steps exceeds a threshold); leaving one before it has converged is what makes
schedules fail. `3+0@0.25:40` is a mixture: 3 shots, and 0 shots for a quarter of the step's prompts.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from icrl.errors import CheckpointError, ConfigError

__all__ = ["Curriculum", "Stage", "Stages", "parse_stages"]

_STAGE = re.compile(r"(?P<first>\d+)(?P<others>(?:\+[^+:]*)*):(?P<steps>\d+)")
_PART = re.compile(r"\+(\d+)@(0?\.\d+|1(?:\.0*)?)")
_GOLDEN = (5**0.5 - 1) / 2


class Curriculum(Protocol):
    """Chooses the number of demonstrations; its state is part of the checkpoint."""

    @property
    def stage(self) -> int:
        """Index of the current stage."""
        ...

    @property
    def finished(self) -> bool:
        """Whether training should stop."""
        ...

    @property
    def max_steps(self) -> int:
        """Steps that the whole schedule takes at most."""
        ...

    @property
    def steps_left(self) -> int:
        """Steps that remain at most."""
        ...

    def shots(self, step: int, index: int, n: int) -> int:
        """Return the demonstrations for prompt `index` of the `n` of step `step`."""
        ...

    def record(self, step: int, success: float) -> None:
        """Learn how step `step` went; `success` is its mean exact match in [0, 1]."""
        ...

    def state(self) -> dict[str, Any]:
        """Return what `restore` needs, as plain JSON values."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue exactly where `state` was taken."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A stretch of training with one mixture of shots."""

    mixture: tuple[tuple[int, float], ...]
    """(shots, fraction of the prompts); the fractions sum to 1."""
    steps: int
    """Steps that it lasts at most."""

    def shots(self, step: int, index: int, n: int) -> int:
        """Choose by systematic sampling: each count is within one prompt of its fraction in every step.

        The offset moves with the step (by the golden ratio), so that small fractions of few prompts come up too.
        """
        point = (index + step * _GOLDEN % 1.0) / n
        reached = 0.0
        for shots, fraction in self.mixture:
            reached += fraction
            if point < reached:
                return shots
        return self.mixture[-1][0]


class Stages:
    """Fixed stages with caps, left early once mastered.

    Args:
        schedule: The stages, such as `3:40,2:15,1:15,0:40`.
        promote_at: Leave a stage when the mean success of its last `window` steps exceeds this; `None` runs every
            stage to its cap (the baselines: zero-shot `0:60`, few-shot `3:60`, aggressive `3:5,0:45`).
        finish_at: The same for the last stage, which ends the run; `promote_at` if not given.
        window: Steps of that mean; they all have to lie in the current stage.

    Raises:
        ConfigError: The schedule cannot be read; the message names the offending part.

    Example:
        >>> stages = Stages("3:40,0:40", window=1)
        >>> stages.shots(0, 0, 16)
        3
        >>> stages.record(0, 0.95)
        >>> stages.shots(1, 0, 16)
        0
    """

    def __init__(
        self, schedule: str, *, promote_at: float | None = 0.9, finish_at: float | None = None, window: int = 5
    ) -> None:
        for name, value in (("promote_at", promote_at), ("finish_at", finish_at)):
            if value is not None and not 0 <= value < 1:
                raise ConfigError(f"{name}: must be in [0, 1), or null, not {value!r}")
        if window < 1:
            raise ConfigError(f"window: must be >= 1 step, not {window!r}")
        self.schedule = schedule
        """The stages as they were written."""
        self.stages = parse_stages(schedule)
        """The stages."""
        self._promote_at = promote_at
        self._finish_at = promote_at if finish_at is None else finish_at
        self._stage = 0
        self._steps = 0
        self._recent: deque[float] = deque(maxlen=window)

    @property
    def stage(self) -> int:
        """Index of the current stage; the last one's once the schedule is finished."""
        return min(self._stage, len(self.stages) - 1)

    def stage_after(self, begun: Sequence[int]) -> int:
        """Return the stage of the next step to begin, where steps are begun ahead of those that are recorded.

        Args:
            begun: Stages of the steps that were begun and are not recorded yet.

        Example:
            >>> stages = Stages("3:2,0:40")
            >>> stages.stage_after([0]), stages.stage_after([0, 0]), stages.stage
            (0, 1, 0)
        """
        stage, steps = self.stage, self._steps
        while stage < len(self.stages) - 1 and steps + begun.count(stage) >= self.stages[stage].steps:
            stage, steps = stage + 1, 0
        return stage

    @property
    def finished(self) -> bool:
        """Whether the last stage was mastered or ran to its cap."""
        return self._stage >= len(self.stages)

    @property
    def max_steps(self) -> int:
        """Steps of all stages together."""
        return sum(stage.steps for stage in self.stages)

    @property
    def steps_left(self) -> int:
        """Steps that remain if no further stage is left early."""
        return sum(stage.steps for stage in self.stages[self._stage :]) - self._steps

    @property
    def max_shots(self) -> int:
        """Most demonstrations that any prompt will show."""
        return max(shots for stage in self.stages for shots, _ in stage.mixture)

    def shots(self, step: int, index: int, n: int) -> int:
        """Return the demonstrations for prompt `index` of the `n` of step `step`."""
        return self.stages[self.stage].shots(step, index, n)

    def record(self, step: int, success: float) -> None:
        """Count a step of the current stage, and leave the stage if it is over.

        Args:
            step: The step, for messages.
            success: Its mean exact match in [0, 1].

        Raises:
            ConfigError: The schedule is finished already.
        """
        if self.finished:
            raise ConfigError(f"schedule: {self.schedule} was finished before step {step}")
        self._steps += 1
        self._recent.append(success)
        if self._mastered() or self._steps >= self.stages[self._stage].steps:
            self._stage, self._steps = self._stage + 1, 0
            self._recent.clear()

    def _mastered(self) -> bool:
        window = self._recent.maxlen
        if self._promote_at is None or self._finish_at is None or len(self._recent) != window:
            return False
        is_last = self._stage == len(self.stages) - 1
        return sum(self._recent) / len(self._recent) > (self._finish_at if is_last else self._promote_at)

    def state(self) -> dict[str, Any]:
        """Return what `restore` needs, as plain JSON values."""
        return {
            "schedule": self.schedule,
            "stage": self._stage,
            "steps": self._steps,
            "recent": list(self._recent),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue exactly where `state` was taken.

        Raises:
            CheckpointError: The state is of another schedule, or damaged.
        """
        try:
            schedule, stage, steps = state["schedule"], int(state["stage"]), int(state["steps"])
            recent = [float(success) for success in state["recent"]]
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"curriculum: the saved state is damaged ({error!r})") from error
        if schedule != self.schedule:
            raise CheckpointError(f"curriculum: the checkpoint is of schedule {schedule!r}, not {self.schedule!r}")
        self._stage, self._steps = stage, steps
        self._recent.clear()
        self._recent.extend(recent)


def parse_stages(schedule: str) -> tuple[Stage, ...]:
    """Read a schedule.

    Raises:
        ConfigError: A part cannot be read, or makes no sense.

    Example:
        >>> parse_stages("3+0@0.25:40")[0].mixture
        ((3, 0.75), (0, 0.25))
    """
    return tuple(_stage(part.strip(), schedule) for part in schedule.split(","))


def _stage(text: str, schedule: str) -> Stage:
    match = _STAGE.fullmatch(text)
    if match is None:
        raise ConfigError(f"schedule: {text!r} in {schedule!r} is not shots:steps, such as 3:40 or 3+0@0.25:40")
    others = [(int(shots), float(fraction)) for shots, fraction in _PART.findall(match["others"])]
    if _PART.sub("", match["others"]):
        raise ConfigError(f"schedule: {match['others']!r} in {schedule!r} is not +shots@fraction, such as +0@0.25")
    rest = 1.0 - sum(fraction for _, fraction in others)
    if rest <= 0:
        raise ConfigError(f"schedule: the fractions of {text!r} leave no prompt for {match['first']} shots")
    if (steps := int(match["steps"])) < 1:
        raise ConfigError(f"schedule: {text!r} has no steps")
    return Stage(mixture=((int(match["first"]), rest), *others), steps=steps)
