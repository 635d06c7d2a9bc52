"""Writing served trajectories down, for people who train on what their users asked; off unless asked for."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from icrl.errors import ConfigError
from icrl.events import Event, RunFinished
from icrl.trajectory import Segment, Trajectory
from icrl.wire import encode

__all__ = ["TrainingLog", "redacted"]

ROTATE_BYTES = 64 * 1024 * 1024
KEPT_FILES = 8
REDACTED = "[redacted]"
_LOG = logging.getLogger("icrl.serve")


class TrainingLog:
    """A JSONL file of trajectories, which `icrl.runtime.store.read_trajectories` reads.

    When it has grown to `rotate_bytes` it is renamed to `NAME.1`, that to `NAME.2` and so on; the oldest goes. Lines
    are written in a thread, so that a slow disk holds up no stream.

    Args:
        path: The file.
        redact: Write no text and no tokens, only what can be counted.
        rotate_bytes: Size at which a new file begins.
        kept_files: Older files that are kept.

    Raises:
        ConfigError: The file cannot be written.
    """

    def __init__(
        self, path: Path, *, redact: bool = False, rotate_bytes: int = ROTATE_BYTES, kept_files: int = KEPT_FILES
    ) -> None:
        self._path = path
        self._redact = redact
        self._rotate_bytes = rotate_bytes
        self._kept_files = kept_files
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="training-log")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(mode=0o600)
        except OSError as error:
            raise ConfigError(f"log_trajectories: {path} cannot be written ({error.strerror})") from error

    def watch(self, run_id: str) -> Callable[[Event], None]:
        """Return something that writes a run down once it is over."""

        def hear(event: Event) -> None:
            if isinstance(event, RunFinished):
                self._thread.submit(self._write, event.trajectory)

        return hear

    def close(self) -> None:
        """Write what is waiting and end the thread."""
        self._thread.shutdown(wait=True)

    def _write(self, trajectory: Trajectory) -> None:
        line = encode(redacted(trajectory) if self._redact else trajectory) + b"\n"
        try:
            if self._path.exists() and self._path.stat().st_size + len(line) > self._rotate_bytes:
                self._rotate()
            with self._path.open("ab") as file:
                file.write(line)
        except OSError as error:
            _LOG.warning("trajectory %s could not be written down: %s", trajectory.id, error)

    def _rotate(self) -> None:
        for number in range(self._kept_files, 0, -1):
            older = self._path if number == 1 else self._numbered(number - 1)
            with suppress(FileNotFoundError):
                older.replace(self._numbered(number))

    def _numbered(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")


def redacted(trajectory: Trajectory) -> Trajectory:
    """Return a trajectory without anything that somebody or a tool wrote: lengths, timings and reasons stay.

    Example:
        >>> from icrl.trajectory import StopReason
        >>> from icrl.types import Task
        >>> t = Trajectory(id="t", task=Task(query="a secret"), segments=(), stop_reason=StopReason.ANSWER, answer="x")
        >>> redacted(t).task.query, redacted(t).answer
        ('[redacted]', '[redacted]')
    """
    return replace(
        trajectory,
        task=replace(trajectory.task, query=REDACTED, answers=(), metadata={}),
        segments=tuple(map(_redacted_segment, trajectory.segments)),
        answer=None if trajectory.answer is None else REDACTED,
    )


def _redacted_segment(segment: Segment) -> Segment:
    result = None if segment.result is None else replace(segment.result, text=REDACTED)
    calls = tuple(replace(call, arguments={}, error=call.error and REDACTED) for call in segment.calls)
    return replace(segment, ids=(0,) * len(segment.ids), text="", calls=calls, result=result)
