"""The worked examples that a command shows the model."""

from __future__ import annotations

from pathlib import Path

from icrl.errors import ConfigError
from icrl.runtime.prompt import load_demonstrations
from icrl.types import Demonstration

__all__ = ["take_shots"]


def take_shots(demos: Path, shots: int) -> tuple[Demonstration, ...]:
    """Return the first demonstrations of a file; none need no file.

    Args:
        demos: YAML or JSONL of demonstrations.
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
    found = load_demonstrations(demos) if shots else ()
    if len(found) < shots:
        raise ConfigError(f"shots: {shots} were asked for, but {demos} holds {len(found)}")
    return found[:shots]
