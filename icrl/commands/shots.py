"""The worked examples that a command shows the model."""

from __future__ import annotations

from pathlib import Path

from icrl.errors import ConfigError
from icrl.runtime.prompt import load_demonstrations
from icrl.tiny.worlds import EmbeddedWorld
from icrl.train.data import world_demonstrations
from icrl.types import Demonstration

__all__ = ["take_shots"]


def take_shots(demos: Path | EmbeddedWorld, shots: int) -> tuple[Demonstration, ...]:
    """Return the first demonstrations of a file or an embedded world; none need no file.

    Args:
        demos: YAML or JSONL of demonstrations, or a world.
        shots: How many to take.

    Raises:
        ConfigError: `shots` is negative, or more than the file holds.
        DataError: The file is wrong.

    Example:
        >>> from icrl.tiny import DEMONSTRATIONS
        >>> len(take_shots(DEMONSTRATIONS, 3))
        3
    """
    if shots < 0:
        raise ConfigError(f"shots: must be >= 0, not {shots}")
    if not shots:
        return ()
    found = world_demonstrations(demos) if isinstance(demos, EmbeddedWorld) else load_demonstrations(demos)
    if len(found) < shots:
        name = f"the world {demos.name!r}" if isinstance(demos, EmbeddedWorld) else demos
        raise ConfigError(f"shots: {shots} were asked for, but {name} holds {len(found)}")
    return found[:shots]
