"""Where the trainer's rows come from: curriculum, tasks, rollouts, rewards, step by step.

The event loop runs in its own thread for the whole run, behind a portal; the trainer keeps the main thread and asks.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any

from anyio.from_thread import BlockingPortal

from icrl.runtime.engines.protocol import WeightSink
from icrl.runtime.rollout import Plan, Rollout
from icrl.runtime.store import TrajectoryStore
from icrl.seeds import seed_for
from icrl.train.checkpoint import RunState
from icrl.train.config import TrainConfig
from icrl.train.curriculum import Stages
from icrl.train.evaluate import called
from icrl.train.metrics import MetricsLog, StepMetrics
from icrl.train.rows import rows_of
from icrl.train.statistics import mean
from icrl.train.tasks import TaskSampler
from icrl.train.variance import VarianceMonitor
from icrl.trajectory import Group, Row
from icrl.types import Demonstration, Task

__all__ = ["Interrupted", "RolloutSource"]


class Interrupted(Exception):
    """Ctrl-C arrived while a step was being rolled out; the step did not happen."""


@dataclass(slots=True, kw_only=True)
class RolloutSource:
    """Makes the rows of each step, and measures them."""

    config: TrainConfig
    """The run's configuration."""
    portal: BlockingPortal
    """Leads into the event loop's thread."""
    rollout: Rollout
    """Rolls plans out."""
    sink: WeightSink
    """The engine, as something that takes weights."""
    sampler: TaskSampler
    """Chooses tasks."""
    demonstrations: Sequence[Demonstration]
    """The pool that prompts draw from."""
    curriculum: Stages
    """Chooses numbers of shots."""
    store: TrajectoryStore
    """Keeps every trajectory."""
    metrics: MetricsLog
    """Keeps the metrics."""
    on_warning: Callable[[str], None]
    """Hears what is wrong with the reward."""
    on_step: Callable[[StepMetrics], None] = lambda metrics: None
    """Hears the metrics of every completed step."""
    interrupted: bool = False
    """Set by Ctrl-C."""
    monitor: VarianceMonitor = field(default_factory=VarianceMonitor)
    """Finds parts of the reward that teach nothing."""
    warnings: list[str] = field(default_factory=list)
    """What was said to `on_warning`."""
    version: int = 0
    """Weight version that the engine holds."""
    _pending: StepMetrics | None = None
    _rolled_out_at: float = 0.0

    def rows(self, step: int, model: Any) -> list[Row]:
        """Sync the engine, roll out step `step` (from 1) and return its informative rows.

        Raises:
            Interrupted: Ctrl-C arrived; the trajectories made so far are stored as aborted.
        """
        if self.interrupted:  # between two steps, say during an evaluation
            raise Interrupted
        self.sync(model, version=step - 1)
        started = time.monotonic()
        groups = self.portal.call(self.rollout.collect, self._plans(step))
        generate_s = time.monotonic() - started
        self.store.append(t for group in groups for t in group.trajectories)
        if self.interrupted:
            raise Interrupted
        for warning in self.monitor.observe(groups):
            self.warn(warning)
        rows = rows_of(
            groups,
            temperature=self.config.rollout.temperature,
            scale=self.config.loss.advantage,
            informative_only=self.config.loss.kl == 0,
        )
        self._pending = self._measure(step, groups, generate_s)
        self.curriculum.record(step, _success(groups))
        self._rolled_out_at = time.monotonic()
        return rows

    def warn(self, text: str) -> None:
        """Say something that the report repeats."""
        self.warnings.append(text)
        self.on_warning(text)

    def sync(self, model: Any, version: int) -> None:
        """Bring the engine to the trainer's weights, unless it has them already."""
        from icrl.train.sync import push

        if version != self.version:
            self.portal.call(push, self.sink, model, version)
            self.version = version

    def _plans(self, step: int) -> list[Plan]:
        tasks = self.sampler.batch(step - 1, self.config.rollout.prompts)
        # One draw of demonstrations a step: prompts with the same number of shots then share their prefix.
        pool = list(self.demonstrations)
        Random(seed_for(self.config.seed, "demonstrations", step)).shuffle(pool)
        return [self._plan(step, index, task, pool) for index, task in enumerate(tasks)]

    def _plan(self, step: int, index: int, task: Task, pool: list[Demonstration]) -> Plan:
        shots = self.curriculum.shots(step - 1, index, self.config.rollout.prompts)
        return Plan(
            # A task may come up twice in one step; the groups must not be confused.
            task=replace(task, id=task.id or f"{step}.{index}"),
            demonstrations=tuple(pool[:shots]),
            members=self.config.rollout.group_size,
            seed=seed_for(self.config.seed, "step", step, index),
            id=f"{step}/{index}/",
        )

    def _measure(self, step: int, groups: Sequence[Group], generate_s: float) -> StepMetrics:
        trajectories = [t for group in groups for t in group.trajectories]
        sampled = sum(t.sampled_tokens for t in trajectories)
        names = {name for group in groups for part in group.components for name in part}
        parts = [part for group in groups for part in group.components]
        return StepMetrics(
            step=step,
            stage=self.curriculum.stage,
            shots=mean([float(t.shots) for t in trajectories]),
            reward=mean([reward for group in groups for reward in group.rewards]),
            components={name: mean([part.get(name, 0.0) for part in parts]) for name in sorted(names)},
            valid_call_rate=mean([float(called(t)) for t in trajectories]),
            calls_per_trajectory=mean([float(len(t.calls)) for t in trajectories]),
            response_tokens=mean([float(len(t.ids) - t.prompt_length) for t in trajectories]),
            sampled_tokens=sampled,
            informative_groups=sum(group.informative for group in groups),
            generate_s=generate_s,
            tool_s=sum(result.wall_s for t in trajectories for result in t.results),
            tokens_per_s=sampled / generate_s,
            stop_reasons=dict(Counter(str(t.stop_reason) for t in trajectories)),
        )

    def logged(self, step: int, values: dict[str, float]) -> None:
        """Complete the step's metrics with what the trainer measured."""
        if self._pending is None:
            return
        measured = replace(
            self._pending,
            update_s=time.monotonic() - self._rolled_out_at,
            loss=values.get("loss"),
            grad_norm=values.get("grad_norm"),
            entropy=values.get("entropy"),
            kl=values.get("kl"),
            ratio_mean=values.get("ratio_mean"),
            logprob_gap=values.get("logprob_gap"),
            clip_fraction=values.get("clip_ratio/region_mean") or 0.0,
        )
        self._pending = None
        self.metrics.append(measured)
        self.on_step(measured)

    def save(self, directory: str, step: int) -> None:
        """Write the state that TRL does not know of."""
        state = RunState(step=step, curriculum=self.curriculum.state(), trajectories_bytes=self.store.size_bytes)
        state.save(Path(directory))

    async def stop(self) -> None:
        """End the rollouts in flight with what they have."""
        self.rollout.stop()


def _success(groups: Sequence[Group]) -> float:
    """Mean exact match; of a reward without that part, its mean."""
    pairs = [
        part.get("em", reward) for group in groups for part, reward in zip(group.components, group.rewards, strict=True)
    ]
    return mean(pairs)
