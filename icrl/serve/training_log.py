"""Writing served trajectories down, for people who train on what their users asked; off unless asked for."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Container
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from icrl.errors import ConfigError, ToolArgumentError, ToolNotFound
from icrl.events import Event, RunFinished
from icrl.serve.backlog import Backlog
from icrl.trajectory import Segment, Trajectory
from icrl.wire import encode

__all__ = ["TrainingLog", "redacted"]

ROTATE_BYTES = 64 * 1024 * 1024
KEPT_FILES = 8
MAX_WAITING = 256
CLOSE_TIMEOUT_S = 10.0
PRIVATE = 0o600
REDACTED = "[redacted]"
NOT_FOUND, NOT_READ = ToolNotFound.__name__, ToolArgumentError.__name__
_LOG = logging.getLogger("icrl.serve")


class TrainingLog:
    """A JSONL file of trajectories, which `icrl.runtime.store.read_trajectories` reads.

    When it has grown to `rotate_bytes` it is renamed to `NAME.1`, that to `NAME.2` and so on; the oldest goes. Lines
    are written in a thread, so that a slow disk holds up no stream; where too many wait for it, further ones are lost,
    with a warning. Only the owner may read what is written.

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
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._append(b"")
        except OSError as error:
            raise ConfigError(f"log_trajectories: {path} cannot be written ({error.strerror})") from error
        self._backlog: Backlog[Trajectory] = Backlog(self._write, name="training-log", max_waiting=MAX_WAITING)

    @property
    def dropped(self) -> int:
        """Trajectories that were lost because the disk was too slow."""
        return self._backlog.dropped

    def watch(self, run_id: str) -> Callable[[Event], None]:
        """Return something that writes a run down once it is over."""

        def hear(event: Event) -> None:
            if isinstance(event, RunFinished) and not self._backlog.put(event.trajectory):
                _LOG.warning("trajectory %s is not written down: too many wait for the disk", run_id)

        return hear

    def close(self) -> None:
        """Write what is waiting and end the thread; a disk that hangs is not waited for."""
        if not self._backlog.close(timeout_s=CLOSE_TIMEOUT_S):
            _LOG.warning("%s: trajectories are lost, the disk does not answer", self._path)

    def _write(self, trajectory: Trajectory) -> None:
        line = encode(redacted(trajectory) if self._redact else trajectory) + b"\n"
        try:
            if self._path.exists() and self._path.stat().st_size + len(line) > self._rotate_bytes:
                self._rotate()
            self._append(line)
        except OSError as error:
            _LOG.warning("trajectory %s could not be written down: %s", trajectory.id, error)

    def _append(self, line: bytes) -> None:
        with open(self._path, "ab", opener=lambda path, flags: os.open(path, flags, PRIVATE)) as file:
            file.write(line)

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
    # A model may write anything where a tool's name belongs; only those that were answered for are names of tools.
    ran = {result.call_id for result in trajectory.results if result.error not in (NOT_FOUND, NOT_READ)}
    error = trajectory.error
    return replace(
        trajectory,
        task=replace(trajectory.task, query=REDACTED, answers=(), metadata={}),
        segments=tuple(_redacted_segment(segment, ran) for segment in trajectory.segments),
        answer=None if trajectory.answer is None else REDACTED,
        error=None if error is None else replace(error, message=REDACTED),
    )


def _redacted_segment(segment: Segment, ran: Container[str]) -> Segment:
    calls = tuple(
        replace(call, name=_name(call.name, call.id in ran), arguments={}, error=call.error and REDACTED)
        for call in segment.calls
    )
    result = segment.result
    if result is not None:
        result = replace(result, name=_name(result.name, result.call_id in ran), text=REDACTED)
    return replace(segment, ids=(0,) * len(segment.ids), text="", calls=calls, result=result)


def _name(name: str, is_tool: bool) -> str:
    return name if is_tool else REDACTED
