"""Where the trainer's rows come from: curriculum, tasks, rollouts, rewards, step by step.

The event loop runs in its own thread for the whole run, behind a portal; the trainer keeps the main thread and asks.
"""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, NoReturn

from anyio.from_thread import BlockingPortal

from icrl.errors import WeightSyncError
from icrl.runtime.engines.pool import EnginePool
from icrl.runtime.rollout import Plan, Rollout, RolloutTally
from icrl.runtime.store import TrajectoryStore
from icrl.seeds import seed_for
from icrl.train.checkpoint import RunState
from icrl.train.config import TrainConfig
from icrl.train.curriculum import Stages
from icrl.train.engine import TrainedEngine, require_some
from icrl.train.engine_use import StepUse
from icrl.train.evaluate import called
from icrl.train.gap import GapWatch
from icrl.train.metrics import MetricsLog, StepMetrics
from icrl.train.pipeline import Pipeline, RolledOut
from icrl.train.ranks import Ranks
from icrl.train.rows import rows_of
from icrl.train.statistics import mean
from icrl.train.tasks import TaskSampler
from icrl.train.variance import VarianceMonitor
from icrl.trajectory import Group, Row, Trajectory
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
    sink: TrainedEngine
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
    discarded: deque[Trajectory] = field(default_factory=deque)
    """Trajectories that the rollout left out of their groups; filled by the event loop."""
    check_engine: Callable[[], None] = lambda: None
    """Raises if the engine is gone for good."""
    on_step: Callable[[StepMetrics], None] = lambda metrics: None
    """Hears the metrics of every completed step."""
    interrupted: bool = False
    """Set by Ctrl-C."""
    monitor: VarianceMonitor = field(default_factory=VarianceMonitor)
    """Finds parts of the reward that teach nothing."""
    warnings: list[str] = field(default_factory=list)
    """What was said to `on_warning`."""
    ranks: Ranks
    """The trainer's other processes, which have to take part in some of it."""
    version: int | None = None
    """Weight version that the engine holds; `None` where its weights are not known to be the trainer's."""
    _pending: StepMetrics | None = None
    _rolled_out_at: float = 0.0
    _sync_s: float = 0.0
    _tally: RolloutTally = field(default_factory=RolloutTally)
    _stored_bytes: int = 0
    _pipeline: Pipeline = field(init=False)
    _gap: GapWatch = field(init=False)
    _use: StepUse = field(init=False)

    def __post_init__(self) -> None:
        self._stored_bytes = self.store.size_bytes
        self._gap = GapWatch(self.config.sync.max_logprob_gap, self.warn)
        self._use = StepUse(self.portal, self.sink)
        if isinstance(self.sink, EnginePool):
            self.sink.notify(self.warn)
        self._pipeline = Pipeline(
            self.portal,
            self._roll_out,
            stage=self.curriculum.stage_after,
            version=lambda: self.version,
            staleness=self.config.rollout.staleness,
            last=self.curriculum.max_steps,
        )

    def rows(self, step: int, model: Any) -> list[Row]:
        """Sync the engine, take what was rolled out for step `step` (from 1) and return its informative rows.

        Raises:
            Interrupted: Ctrl-C arrived; the trajectories made so far are stored as aborted.
            WeightSyncError: The engine did not take the weights.
            EngineError: Every trajectory of the step failed, or the engine is gone for good.
        """
        if self.interrupted:  # between two steps, say during an evaluation
            self._stop()
        self._use.begin()
        self.sync(model, version=step - 1)
        rolled_out = self._pipeline.take(step)
        groups = rolled_out.groups
        self._keep(step, groups)
        if self.interrupted:
            self._stop()
        self._refuse_failure(step, groups)
        self._stored_bytes = self.store.size_bytes
        for warning in self.monitor.observe(groups):
            self.warn(warning)
        rows = rows_of(
            groups,
            temperature=self.config.rollout.temperature,
            scale=self.config.loss.advantage,
            informative_only=self.config.loss.kl == 0,
            begun_under=rolled_out.version,
        )
        self._pending = self._measure(step, rolled_out, rows)
        if rolled_out.stage == self.curriculum.stage:  # else it was begun in a stage that was mastered meanwhile
            self.curriculum.record(step, _success(groups))
        if not self.curriculum.finished:
            self._pipeline.overlap(step)
        self.ranks.tell("rows", (rows, self.finished))
        self._rolled_out_at = time.monotonic()
        return rows

    @property
    def finished(self) -> bool:
        """Whether the rows handed out last are to be the last; all ranks have to agree on it."""
        return self.curriculum.finished or (self.interrupted and self.ranks.world == 1)

    def _stop(self) -> NoReturn:
        self._abandon()
        self.ranks.tell("stop")
        raise Interrupted

    def close(self) -> None:
        """End what is still being rolled out, and keep what it has."""
        self._abandon()

    def _abandon(self) -> None:
        # Ctrl-C stopped what was under way then; steps may have begun since.
        self.portal.call(self.rollout.stop)
        self._keep(self.curriculum.max_steps, self._pipeline.rest())

    def _keep(self, step: int, groups: Iterable[Group]) -> None:
        """Store trajectories, those that are in no group too, but none of steps that come after this one."""
        self.store.append(t for group in groups for t in group.trajectories)
        left_out = [self.discarded.popleft() for _ in range(len(self.discarded))]
        self.store.append(t for t in left_out if _step_of(t) <= step)
        self.discarded.extendleft(t for t in reversed(left_out) if _step_of(t) > step)

    def warn(self, text: str) -> None:
        """Say something that the report repeats."""
        self.warnings.append(text)
        self.on_warning(text)

    def sync(self, model: Any, version: int) -> None:
        """Bring the engine to the trainer's weights, unless it has them already."""
        from icrl.train.sync import push

        self.check_engine()
        if version != self.version:
            started = time.monotonic()
            adapters = self.config.sync.adapters
            self.ranks.tell("push", adapters)
            try:
                self.portal.call(
                    partial(push, self.sink, model, version, mode=self.config.sync.pause, adapters=adapters)
                )
            except WeightSyncError:
                self.check_engine()  # which knows more
                raise
            self.version = version
            self._sync_s = time.monotonic() - started

    def _refuse_failure(self, step: int, groups: Sequence[Group]) -> None:
        """Stop a run that would go on learning nothing."""
        self.check_engine()
        require_some([t for group in groups for t in group.trajectories], f"step {step}", self.sink)

    async def _roll_out(self, step: int, stage: int) -> Sequence[Group]:
        if self.interrupted:  # set before `stop`, which found nothing of this step to end
            return []
        wanted = self.config.rollout.prompts
        plans = self._plans(step, stage)
        return await self.rollout.collect(plans, keep=wanted if len(plans) > wanted else None)

    @property
    def _begun(self) -> int:
        """Tasks that a step begins."""
        return math.ceil(self.config.rollout.prompts * self.config.rollout.oversample)

    def _plans(self, step: int, stage: int) -> list[Plan]:
        tasks = self.sampler.batch(step - 1, self._begun)
        # One draw of demonstrations a step: prompts with the same number of shots then share their prefix.
        pool = list(self.demonstrations)
        Random(seed_for(self.config.seed, "demonstrations", step)).shuffle(pool)
        return [self._plan(step, stage, index, task, pool) for index, task in enumerate(tasks)]

    def _plan(self, step: int, stage: int, index: int, task: Task, pool: list[Demonstration]) -> Plan:
        shots = self.curriculum.stages[stage].shots(step - 1, index, self._begun)
        return Plan(
            # A task may come up twice in one step; the groups must not be confused.
            task=replace(task, id=task.id or f"{step}.{index}"),
            demonstrations=tuple(pool[:shots]),
            members=self.config.rollout.group_size,
            seed=seed_for(self.config.seed, "step", step, index),
            id=f"{step}/{index}/",
        )

    def _measure(self, step: int, rolled_out: RolledOut, rows: Sequence[Row]) -> StepMetrics:
        groups = rolled_out.groups
        trajectories = [t for group in groups for t in group.trajectories]
        sampled = sum(t.sampled_tokens for t in trajectories)
        names = {name for group in groups for part in group.components for name in part}
        parts = [part for group in groups for part in group.components]
        return StepMetrics(
            step=step,
            stage=rolled_out.stage,
            shots=mean([float(t.shots) for t in trajectories]),
            reward=mean([reward for group in groups for reward in group.rewards]),
            components={name: mean([part.get(name, 0.0) for part in parts]) for name in sorted(names)},
            valid_call_rate=mean([float(called(t)) for t in trajectories]),
            calls_per_trajectory=mean([float(len(t.calls)) for t in trajectories]),
            response_tokens=mean([float(len(t.ids) - t.prompt_length) for t in trajectories]),
            sampled_tokens=sampled,
            informative_groups=sum(group.informative for group in groups),
            generate_s=rolled_out.wait_s,
            sync_s=self._sync_s,
            staleness=mean([float(step - 1 - row.weight_versions[0]) for row in rows]),
            tool_s=sum(result.wall_s for t in trajectories for result in t.results),
            tokens_per_s=sampled / rolled_out.wall_s,
            irregular=self._irregular(),
            stop_reasons=dict(Counter(str(t.stop_reason) for t in trajectories)),
        )

    def _irregular(self) -> dict[str, float]:
        before, self._tally = self._tally, self.portal.call(lambda: self.rollout.tally)
        return self._tally.irregular(before)

    def logged(self, step: int, values: dict[str, float]) -> None:
        """Complete the step's metrics with what the trainer measured."""
        if self._pending is not None:
            self._complete(self._pending, values)
        self.ranks.tell("logged")

    def _complete(self, pending: StepMetrics, values: dict[str, float]) -> None:
        measured = replace(
            pending,
            update_s=time.monotonic() - self._rolled_out_at,
            loss=values.get("loss"),
            grad_norm=values.get("grad_norm"),
            entropy=values.get("entropy"),
            kl=values.get("kl"),
            ratio_mean=values.get("ratio_mean"),
            logprob_gap=values.get("logprob_gap"),
            logprob_gap_mean=values.get("logprob_gap_mean"),
            logprob_gap_tokens=int(values.get("logprob_gap_tokens") or 0),
            clip_fraction=values.get("clip_ratio/region_mean") or 0.0,
            engine=self._use.end(),
        )
        self._pending = None
        self.metrics.append(measured)
        self.on_step(measured)
        self._gap.look(measured)

    def save(self, directory: str, step: int) -> None:
        """Write the state that TRL does not know of."""
        state = RunState(step=step, curriculum=self.curriculum.state(), trajectories_bytes=self._stored_bytes)
        state.save(Path(directory))

    async def stop(self) -> None:
        """End the rollouts in flight with what they have."""
        self.rollout.stop()


def _step_of(trajectory: Trajectory) -> int:
    return int(trajectory.id.partition("/")[0])


def _success(groups: Sequence[Group]) -> float:
    """Mean exact match; of a reward without that part, its mean."""
    pairs = [
        part.get("em", reward) for group in groups for part, reward in zip(group.components, group.rewards, strict=True)
    ]
    return mean(pairs)
