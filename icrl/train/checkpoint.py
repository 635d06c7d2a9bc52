"""Checkpoints: TRL's directory, plus our own state, which is written last."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from icrl.errors import CheckpointError, DataError
from icrl.wire import decode, encode

__all__ = ["RunState", "checkpoint_directory", "latest_checkpoint", "load_state"]

STATE_FILE = "icrl.json"
"""A checkpoint without it was interrupted while it was written, and is passed over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """What a resumed run needs beside the trainer's own checkpoint."""

    step: int
    """Completed optimizer steps."""
    curriculum: Mapping[str, Any]
    """State of the curriculum."""
    trajectories_bytes: int
    """Length of the trajectory file; what comes later will be made again."""

    def save(self, checkpoint: Path) -> None:
        """Complete a checkpoint."""
        (checkpoint / STATE_FILE).write_bytes(encode(self))


def checkpoint_directory(run_directory: Path) -> Path:
    """Return where a run keeps its checkpoints."""
    return run_directory / "checkpoints"


def latest_checkpoint(run_directory: Path) -> Path:
    """Return the newest complete checkpoint of a run.

    Raises:
        CheckpointError: The run has none.
    """
    complete = [path.parent for path in checkpoint_directory(run_directory).glob(f"checkpoint-*/{STATE_FILE}")]
    if not complete:
        raise CheckpointError(f"{run_directory}: holds no complete checkpoint to resume from")
    return max(complete, key=lambda path: int(path.name.rpartition("-")[2]))


def load_state(checkpoint: Path) -> RunState:
    """Read what `RunState.save` wrote.

    Raises:
        CheckpointError: The file is missing or damaged.
    """
    try:
        return decode((checkpoint / STATE_FILE).read_bytes(), RunState)
    except (OSError, DataError) as error:
        raise CheckpointError(f"{checkpoint / STATE_FILE}: cannot be read ({error})") from error
