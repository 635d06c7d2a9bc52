"""One training run: everything that is open while it lasts, and what can be done with it."""

from __future__ import annotations

import shutil
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

from anyio.from_thread import BlockingPortal, start_blocking_portal

from icrl.errors import IcrlError
from icrl.runtime.agent import Agent
from icrl.runtime.model import find_model
from icrl.runtime.rollout import Rollout
from icrl.runtime.sandbox.result import Executor
from icrl.runtime.store import TrajectoryStore
from icrl.runtime.toolset import open_toolbox
from icrl.tokenizer import ChatTokenizer
from icrl.train.checkpoint import RunState, checkpoint_directory, latest_checkpoint, load_state
from icrl.train.config import QUESTION_REWARD, TrainConfig
from icrl.train.curriculum import Stages
from icrl.train.data import Data
from icrl.train.engine import Fate, TrainedEngine, open_engine, require_some
from icrl.train.evaluate import evaluate
from icrl.train.interrupt import on_interrupt
from icrl.train.metrics import Evaluation, EvaluationLog, EvaluationPoint, MetricsLog, StepMetrics
from icrl.train.ranks import Ranks
from icrl.train.rewards import Matcher, Reward, checked, close_reward, find_reward
from icrl.train.rewards.selection import REWARDS, find_matcher
from icrl.train.source import Interrupted, RolloutSource
from icrl.train.summary import RunFacts
from icrl.train.sync import merged_weights
from icrl.train.tasks import TaskSampler
from icrl.train.trainer import AfterStep, RolloutTrainer, build_trainer
from icrl.trajectory import Group, Trajectory
from icrl.types import SamplingParams

__all__ = ["Session", "View", "open_session"]

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


class View(Protocol):
    """Whoever watches a run."""

    def step(self, metrics: StepMetrics) -> None:
        """A step was completed."""
        ...

    def evaluation(self, step: int, result: Evaluation) -> None:
        """The model was evaluated zero-shot."""
        ...

    def warn(self, text: str) -> None:
        """Something deserves attention."""
        ...


@dataclass(slots=True, kw_only=True)
class Session:
    """An open training run."""

    config: TrainConfig
    """What to do."""
    directory: Path
    """Where everything is written."""
    view: View
    """Whoever watches."""
    data: Data
    """Tasks and demonstrations."""
    portal: BlockingPortal
    """Leads into the event loop's thread."""
    agent: Agent
    """The agent that is trained; open."""
    matcher: Matcher
    """What evaluation counts as a match."""
    source: RolloutSource
    """Makes the trainer's rows."""
    evaluations: EvaluationLog
    """Keeps zero-shot evaluations."""
    checkpoint: Path | None
    """Where to start from, when resuming."""
    trainer: RolloutTrainer = field(init=False)
    """Holds the weights that are learnt; filled by `open_session`."""
    samples: list[Group] = field(default_factory=list)
    """A few groups of the last evaluation, for the report."""

    @property
    def step(self) -> int:
        """Completed optimizer steps."""
        return int(self.trainer.state.global_step)

    def train(self) -> bool:
        """Train to the end of the curriculum; `False` when Ctrl-C ended it early, with a checkpoint saved."""
        with on_interrupt(self._ask_to_stop):
            self.source.ranks.tell("train")
            try:
                self.trainer.train(resume_from_checkpoint=str(self.checkpoint) if self.checkpoint else None)
            except Interrupted:
                self.trainer.save_now()
            except IcrlError:
                self._rescue()
                raise
        return not self.source.interrupted

    def _rescue(self) -> None:
        """Keep what was learnt before a failure; the other ranks cannot be asked to take part in the middle of it."""
        if self.source.ranks.world == 1 and self.step:
            self.trainer.save_now()
            self.view.warn(f"step {self.step} is saved; continue with --resume {self.directory}")

    def _ask_to_stop(self) -> None:
        self.source.interrupted = True
        self.view.warn("stopping: a checkpoint is saved once the current step is finished or dropped")
        self.portal.start_task_soon(self.source.stop)

    def finished(self) -> bool:
        """Tell whether training should stop after this step."""
        return self.source.finished

    def completed(self, metrics: StepMetrics) -> None:
        """Show a completed step, and evaluate where an interim evaluation is due."""
        self.view.step(metrics)
        every = self.config.evaluation.every_steps
        if every and metrics.step % every == 0 and not self.finished():
            self.evaluate(self.config.evaluation.interim_tasks)

    def evaluate(self, tasks: int) -> Evaluation:
        """Evaluate the current weights zero-shot and greedily.

        Args:
            tasks: How many held-out tasks; 0 takes all.
        """
        self.source.sync(self.trainer.plain_model, version=self.step)
        chosen = self.data.held_out[:tasks] if tasks else self.data.held_out
        result, groups = self.portal.call(
            partial(
                evaluate,
                self.agent,
                chosen,
                match=self.matcher,
                seed=self.config.seed,
                concurrency=self.config.rollout.concurrency,
            )
        )
        self.source.check_engine()
        require_some(
            [t for g in groups for t in g.trajectories], f"evaluation after step {self.step}", self.source.sink
        )
        self.samples = groups[:4]
        self.evaluations.append(EvaluationPoint(step=self.step, evaluation=result))
        self.view.evaluation(self.step, result)
        return result

    def facts(self, *, startup_s: float, finished: bool, next_commands: tuple[str, ...]) -> RunFacts:
        """Collect what the report cannot read from the run directory."""
        return RunFacts(
            seed=self.config.seed,
            schedule=self.config.schedule,
            startup_s=startup_s,
            resumed_at=load_state(self.checkpoint).step if self.checkpoint else 0,
            finished=finished,
            samples=tuple(group.trajectories[0] for group in self.samples),
            warnings=tuple(self.source.warnings),
            next_commands=next_commands,
        )

    def save_model(self) -> Path:
        """Write the trained model as a Hugging Face directory, with the settings it was trained under."""
        directory = self.directory / "model"
        model = self.trainer.plain_model
        self.source.ranks.tell("gather")
        with merged_weights(model) as weights:
            plain = model.get_base_model() if hasattr(model, "get_base_model") else model
            plain.save_pretrained(directory, state_dict=dict(weights))
        origin = find_model(self.config.model)
        for name in TOKENIZER_FILES:
            if (origin / name).is_file():
                shutil.copyfile(origin / name, directory / name)
        self.config.settings().save(directory)
        return directory


@contextmanager
def open_session(
    config: TrainConfig, directory: Path, data: Data, curriculum: Stages, view: View, ranks: Ranks
) -> Iterator[Session]:
    """Open everything that a run needs, and close it again.

    Args:
        config: What to do.
        directory: The run directory.
        data: Tasks and demonstrations.
        curriculum: Its curriculum; restored here when the run is resumed.
        view: Whoever watches.
        ranks: The trainer's processes, of which this one leads.

    Raises:
        ConfigError: The model, a tool, the reward or the schedule is wrong, or the directory cannot be written.
        DataError: Tasks or demonstrations are wrong.
        CheckpointError: There is nothing to resume from.
    """
    checkpoint, state = _resumed(config, directory, curriculum)
    with ExitStack() as stack:
        portal = stack.enter_context(start_blocking_portal())
        resume_at = state.step if state else None
        agent, engine, fate = _open_agent(config, directory, portal, stack)
        reward, matcher = _reward(config, agent), _matcher(config)
        for judge in (reward, matcher):
            stack.callback(portal.call, close_reward, judge)
        discarded: deque[Trajectory] = deque()
        source = RolloutSource(
            config=config,
            portal=portal,
            rollout=portal.call(_rollout, config, agent, reward, discarded.append),
            discarded=discarded,
            sink=engine,
            sampler=TaskSampler(data.train, config.seed),
            demonstrations=data.demonstrations,
            curriculum=curriculum,
            store=stack.enter_context(_store(directory, state)),
            metrics=stack.enter_context(MetricsLog(directory / "metrics.jsonl", resume_at=resume_at)),
            on_warning=view.warn,
            ranks=ranks,
            check_engine=fate.check,
            # An engine in this process has loaded the very weights that the trainer starts from.
            version=0 if config.engine == "local" else None,
        )
        stack.callback(source.close)
        session = Session(
            config=config,
            directory=directory,
            view=view,
            data=data,
            portal=portal,
            agent=agent,
            matcher=matcher,
            source=source,
            evaluations=stack.enter_context(EvaluationLog(directory / "evaluations.jsonl", resume_at=resume_at)),
            checkpoint=checkpoint,
        )
        source.on_step = session.completed
        _attach_trainer(session)
        yield session


def _resumed(config: TrainConfig, directory: Path, curriculum: Stages) -> tuple[Path | None, RunState | None]:
    """Return where to go on, if anywhere, and bring the curriculum there."""
    checkpoint = latest_checkpoint(directory) if config.resume is not None else None
    state = load_state(checkpoint) if checkpoint else None
    if state is not None:
        curriculum.restore(state.curriculum)
    return checkpoint, state


def _attach_trainer(session: Session) -> None:
    config, source = session.config, session.source
    callback = AfterStep(session.finished, config.save_every)
    checkpoints = checkpoint_directory(session.directory)
    session.trainer = build_trainer(config, find_model(config.model), checkpoints, source, callback)
    for warning in config.warnings():
        source.warn(warning)


def _open_agent(
    config: TrainConfig, run_directory: Path, portal: BlockingPortal, stack: ExitStack
) -> tuple[Agent, TrainedEngine, Fate]:
    directory = find_model(config.model)
    tokenizer = ChatTokenizer.load(directory)
    settings = config.settings()
    engine, fate = open_engine(config, directory, run_directory, tokenizer, portal, stack)
    agent = Agent(
        engine,
        tools=portal.call(open_toolbox, settings.tools, settings, config.tooling),
        dialect=settings.dialect,
        instruction=settings.instruction,
        limits=settings.limits,
        tokenizer=tokenizer,
    )
    stack.enter_context(portal.wrap_async_context_manager(agent))
    return agent, engine, fate


async def _rollout(
    config: TrainConfig, agent: Agent, reward: Reward, on_discard: Callable[[Trajectory], None]
) -> Rollout:
    return Rollout(
        agent,
        score=checked(reward),
        sampling=SamplingParams(temperature=config.rollout.temperature, max_tokens=config.limits.max_tokens),
        concurrency=config.rollout.concurrency,
        policy=config.rollout.policy,
        on_discard=on_discard,
    )


def _sandbox() -> Executor:
    from icrl.runtime.sandbox.sandbox import Sandbox

    return Sandbox()


def _reward(config: TrainConfig, agent: Agent) -> Reward:
    return find_reward(
        config.reward,
        well_formed=agent.model.dialect.well_formed,
        executor=_sandbox,
        em_weight=config.weights.exact_match,
        format_weight=config.weights.format,
        call_penalty=config.weights.call_penalty,
    )


def _matcher(config: TrainConfig) -> Matcher:
    """Return what evaluation counts as a match: the built-in reward's own, and equality beside a user's reward."""
    return find_matcher(config.reward if config.reward in REWARDS else QUESTION_REWARD, executor=_sandbox)


def _store(directory: Path, state: RunState | None) -> TrajectoryStore:
    return TrajectoryStore(directory / "trajectories.jsonl", keep_bytes=state.trajectories_bytes if state else 0)
