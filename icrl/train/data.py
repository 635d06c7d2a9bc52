"""What a run learns from and is judged on."""

from __future__ import annotations

from dataclasses import dataclass

from icrl.errors import ConfigError
from icrl.runtime.prompt import load_demonstrations
from icrl.tiny import DEMONSTRATIONS, HELD_OUT, TRAIN
from icrl.train.config import TrainConfig
from icrl.train.curriculum import Stages
from icrl.train.tasks import load_tasks
from icrl.types import Demonstration, Task

__all__ = ["Data", "load_data"]

HELD_OUT_EVERY = 10
"""Of a user's tasks without `--heldout`, one in so many is kept for evaluation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """Tasks and demonstrations of a run."""

    train: tuple[Task, ...]
    """Tasks to learn from."""
    held_out: tuple[Task, ...]
    """Tasks to be judged on."""
    demonstrations: tuple[Demonstration, ...]
    """Worked examples that prompts draw from."""


def load_data(config: TrainConfig) -> Data:
    """Read tasks and demonstrations.

    Raises:
        DataError: A file is wrong.
        ConfigError: The schedule shows more demonstrations than there are, or too few tasks were given.
    """
    train, held_out = _tasks(config)
    shown = config.demos or (None if config.own_task else DEMONSTRATIONS)
    demonstrations = load_demonstrations(shown) if shown else ()
    most = Stages(config.schedule).max_shots
    if most > len(demonstrations):
        have = f"{shown} holds {len(demonstrations)}" if shown else "none were given (--demos FILE)"
        raise ConfigError(f"demos: the schedule {config.schedule!r} shows up to {most} demonstrations, but {have}")
    return Data(train=train, held_out=held_out, demonstrations=demonstrations)


def _tasks(config: TrainConfig) -> tuple[tuple[Task, ...], tuple[Task, ...]]:
    if config.tasks is None:
        return load_tasks(TRAIN), load_tasks(config.heldout or HELD_OUT)
    tasks = load_tasks(config.tasks)
    if config.heldout is not None:
        return tasks, load_tasks(config.heldout)
    if len(tasks) < 2:
        raise ConfigError(f"tasks: {config.tasks} holds a single task; without --heldout some are kept for evaluation")
    return tuple(t for i, t in enumerate(tasks) if i % HELD_OUT_EVERY), tasks[::HELD_OUT_EVERY]
