"""The figures of a run in one record: `report.json`."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from math import fsum

from icrl.train.metrics import EvaluationPoint, StepMetrics
from icrl.trajectory import Trajectory

__all__ = ["Report", "RunFacts", "summarize"]

_PACKAGES = ("icrl", "torch", "transformers", "trl", "peft", "tokenizers", "numba", "numpy")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """What the files of a run directory do not say."""

    seed: int
    """Seed of the run."""
    schedule: str
    """Curriculum as it was written."""
    startup_s: float
    """Seconds from process start to the first evaluation or step, imports included."""
    resumed_at: int = 0
    """Steps that earlier processes made; their time is not this process's."""
    finished: bool = True
    """Whether the curriculum came to its end."""
    samples: tuple[Trajectory, ...] = ()
    """Trajectories of the last evaluation to show."""
    warnings: tuple[str, ...] = ()
    """What was found wrong on the way."""
    next_commands: tuple[str, ...] = ()
    """What to type next."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """`report.json`."""

    zero_shot_em_before: float | None
    """Held-out exact match without demonstrations before training, where it was measured."""
    zero_shot_em_before_interval: tuple[float, float] | None
    """95 % interval of `zero_shot_em_before`."""
    zero_shot_em: float | None
    """The same after training."""
    zero_shot_em_interval: tuple[float, float] | None
    """95 % interval of `zero_shot_em`."""
    zero_shot_em_by_world: Mapping[str, float]
    """Its parts, where the tasks are of several worlds."""
    zero_shot_f1: float | None
    """Held-out token overlap after training."""
    held_out_tasks: int
    """Tasks of the last evaluation."""
    format_rate: float | None
    """Responses of the last evaluation with the dialect's whole form."""
    valid_call_rate: float | None
    """Trajectories of the last evaluation in which a tool answered a call."""
    wall_s: float
    """Seconds from process start to this report, imports and evaluations included."""
    times_s: Mapping[str, float]
    """Where they went; the parts sum to `wall_s`."""
    tool_s: float
    """Seconds that tools took, summed over concurrent calls; part of the rollouts."""
    steps: int
    """Training steps, those before a resumption included."""
    resumed_at: int
    """Steps that earlier processes made."""
    finished: bool
    """Whether the curriculum came to its end."""
    sampled_tokens: int
    """Tokens that the policy sampled in training."""
    seed: int
    """Seed of the run."""
    schedule: str
    """Curriculum as it was written."""
    stage_steps: tuple[int, ...]
    """Steps that each stage took."""
    warnings: tuple[str, ...]
    """What was found wrong on the way."""
    versions: Mapping[str, str]
    """Python and packages."""


def summarize(
    metrics: Sequence[StepMetrics], points: Sequence[EvaluationPoint], facts: RunFacts, *, wall_s: float
) -> Report:
    """Put the figures of a run together.

    Args:
        metrics: All steps, in order.
        points: All zero-shot evaluations, in order.
        facts: What neither of them says.
        wall_s: Seconds since the process started.

    Example:
        >>> facts = RunFacts(seed=0, schedule="3:40", startup_s=2.0)
        >>> summarize([StepMetrics(step=1, shots=3.0, reward=0.5, generate_s=1.0)], [], facts, wall_s=4.0).times_s
        {'start-up': 2.0, 'rollouts': 1.0, 'updates': 0.0, 'evaluations': 0.0, 'other': 1.0}
    """
    before = next((point.evaluation for point in points if point.step == 0), None)
    after = next((point.evaluation for point in reversed(points) if point.step > 0), None)
    return Report(
        zero_shot_em_before=before.em if before else None,
        zero_shot_em_before_interval=before.em_interval if before else None,
        zero_shot_em=after.em if after else None,
        zero_shot_em_interval=after.em_interval if after else None,
        zero_shot_em_by_world=after.em_by_world if after else {},
        zero_shot_f1=after.f1 if after else None,
        held_out_tasks=after.tasks if after else 0,
        format_rate=after.format_rate if after else None,
        valid_call_rate=after.valid_call_rate if after else None,
        wall_s=wall_s,
        times_s=_times(metrics, points, facts, wall_s),
        tool_s=fsum(m.tool_s for m in metrics if m.step > facts.resumed_at),
        steps=metrics[-1].step if metrics else 0,
        resumed_at=facts.resumed_at,
        finished=facts.finished,
        sampled_tokens=sum(m.sampled_tokens for m in metrics),
        seed=facts.seed,
        schedule=facts.schedule,
        stage_steps=tuple(sum(m.stage == stage for m in metrics) for stage in sorted({m.stage for m in metrics})),
        warnings=facts.warnings,
        versions=_versions(),
    )


def _times(
    metrics: Sequence[StepMetrics], points: Sequence[EvaluationPoint], facts: RunFacts, wall_s: float
) -> dict[str, float]:
    """Split this process's time; steps and evaluations of earlier processes are not in it."""
    steps = [m for m in metrics if m.step > facts.resumed_at]
    own = [p.evaluation.wall_s for p in points if p.step > facts.resumed_at or facts.resumed_at == 0]
    times = {
        "start-up": facts.startup_s,
        "rollouts": fsum(m.generate_s for m in steps),
        "updates": fsum(m.update_s for m in steps),
        "evaluations": fsum(own),
    }
    return {**times, "other": wall_s - fsum(times.values())}


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions
