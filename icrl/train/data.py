"""What a run learns from and is judged on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from icrl.errors import ConfigError
from icrl.runtime.prompt import load_demonstrations
from icrl.tiny.worlds import EmbeddedWorld, find_world
from icrl.train.config import TrainConfig
from icrl.train.curriculum import Stages
from icrl.train.tasks import load_tasks
from icrl.types import Demonstration, Task

__all__ = ["Data", "load_data", "world_demonstrations", "world_tasks"]

T = TypeVar("T")

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
    demonstrations = _demonstrations(config)
    most = Stages(config.schedule).max_shots
    if most > len(demonstrations):
        given = config.demos or (None if config.own_task else f"the world {config.world!r}")
        have = f"{given} holds {len(demonstrations)}" if given else "none were given (--demos FILE)"
        raise ConfigError(f"demos: the schedule {config.schedule!r} shows up to {most} demonstrations, but {have}")
    return Data(train=train, held_out=held_out, demonstrations=demonstrations)


def _demonstrations(config: TrainConfig) -> tuple[Demonstration, ...]:
    if config.demos is not None:
        return load_demonstrations(config.demos)
    return () if config.own_task else world_demonstrations(find_world(config.world))


def _tasks(config: TrainConfig) -> tuple[tuple[Task, ...], tuple[Task, ...]]:
    if config.tasks is None:
        world = find_world(config.world)
        held_out = world_tasks(world.held_out) if config.heldout is None else load_tasks(config.heldout)
        return world_tasks(world.train), held_out
    tasks = load_tasks(config.tasks)
    if config.heldout is not None:
        return tasks, load_tasks(config.heldout)
    if len(tasks) < 2:
        raise ConfigError(f"tasks: {config.tasks} holds a single task; without --heldout some are kept for evaluation")
    return tuple(t for i, t in enumerate(tasks) if i % HELD_OUT_EVERY), tasks[::HELD_OUT_EVERY]


def world_tasks(files: Iterable[Path]) -> tuple[Task, ...]:
    """Read the tasks of an embedded world's files, one of each in turn.

    Example:
        >>> [task.metadata["world"] for task in world_tasks(find_world("mixed").held_out)[:4]]
        ['search', 'code', 'search', 'code']
    """
    return _in_turn(map(load_tasks, files))


def world_demonstrations(world: EmbeddedWorld) -> tuple[Demonstration, ...]:
    """Read the demonstrations of an embedded world, one of each file in turn."""
    return _in_turn(map(load_demonstrations, world.demonstrations))


def _in_turn(parts: Iterable[tuple[T, ...]]) -> tuple[T, ...]:
    rows = tuple(parts)
    return tuple(row[i] for i in range(max(map(len, rows))) for row in rows if i < len(row))
