"""What happens during a run, as a closed union of immutable events.

`Agent.stream` yields them; the console, the server, the store and the trainer are consumers. The law: `fold` over
the events, without reading the last one's payload, gives exactly the trajectory. It holds by construction, because
the agent itself records its trajectory by applying its own events to a `Recording`.

    RunStarted            the prompt
    TextDelta             new text, while a turn is being sampled (display only)
    TurnFinished          the sampled tokens of one turn
    CallStarted           a tool begins
    CallFinished          a tool answered
    ToolOutput            the tokens that were appended for the tools' answers
    RunStopped            why it ended
    RunFinished           the trajectory
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import lru_cache
from operator import attrgetter
from typing import Any, Literal, NamedTuple

from icrl.errors import DataError
from icrl.trajectory import Failure, Segment, StopReason, Trajectory, Turn
from icrl.types import Task, ToolCall, ToolResult

__all__ = [
    "CallFinished",
    "CallStarted",
    "Event",
    "Recording",
    "RunFinished",
    "RunStarted",
    "RunStopped",
    "TextDelta",
    "ToolOutput",
    "TurnFinished",
    "fold",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStarted:
    """A run began."""

    trajectory_id: str
    """The trajectory's id."""
    task: Task
    """What is asked."""
    segments: tuple[Segment, ...]
    """The prompt."""
    shots: int = 0
    """Demonstrations in the prompt."""
    kind: Literal["run_started"] = "run_started"


@dataclass(frozen=True, slots=True, kw_only=True)
class TextDelta:
    """More text of the turn that is being sampled."""

    turn: int
    """Index of the turn."""
    text: str
    """The new characters; never half of one."""
    kind: Literal["text_delta"] = "text_delta"


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnFinished:
    """The engine finished a turn."""

    turn: Turn
    """Its bookkeeping."""
    segment: Segment
    """The sampled tokens, with logprobs, weight versions and calls."""
    kind: Literal["turn_finished"] = "turn_finished"


@dataclass(frozen=True, slots=True, kw_only=True)
class CallStarted:
    """A tool begins to work on a call."""

    call: ToolCall
    """The call."""
    kind: Literal["call_started"] = "call_started"


@dataclass(frozen=True, slots=True, kw_only=True)
class CallFinished:
    """A tool answered, or failed in a way that the model may read."""

    call: ToolCall
    """The call."""
    result: ToolResult
    """The answer."""
    kind: Literal["call_finished"] = "call_finished"


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolOutput:
    """Tokens were appended to the sequence: results, notices and the separators around them."""

    segments: tuple[Segment, ...]
    """The appended tokens."""
    kind: Literal["tool_output"] = "tool_output"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStopped:
    """The run ended."""

    stop_reason: StopReason
    """Why."""
    answer: str | None
    """The final answer, if there is one."""
    wall_s: float
    """Seconds since the start."""
    error: Failure | None = None
    """What broke, where `stop_reason` is `ERROR`."""
    kind: Literal["run_stopped"] = "run_stopped"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFinished:
    """The last event: the trajectory, which equals the fold of the events before."""

    trajectory: Trajectory
    """Everything that happened."""
    kind: Literal["run_finished"] = "run_finished"


Event = RunStarted | TextDelta | TurnFinished | CallStarted | CallFinished | ToolOutput | RunStopped | RunFinished
"""Anything that `Agent.stream` yields. New kinds may be added; `match` with a default."""


_SHORT = 32
"""Segments of so few tokens are kept as they are: most are separators, which all runs share."""

_OTHERS = tuple(field.name for field in fields(Segment) if field.name not in ("ids", "logprobs"))
_others_of = attrgetter(*_OTHERS)


class _Span(NamedTuple):
    """A segment in flight: 4 bytes a token in the recording's buffer and 8 a logprob, where objects take 36 and 32."""

    start: int
    """Where its ids begin in the buffer."""
    end: int
    """Where they end."""
    logprobs: array[float] | None
    """[T] of sampled tokens, exactly as they came."""
    rest: tuple[Any, ...]
    """Its other fields."""

    def cut(self, ids: array[int]) -> Segment:
        """Make the segment again."""
        logprobs = None if self.logprobs is None else tuple(self.logprobs.tolist())
        found = tuple(ids[self.start : self.end].tolist())  # by way of a list it takes a fifth less
        return Segment(ids=found, logprobs=logprobs, **dict(zip(_OTHERS, self.rest, strict=True)))


class Recording:
    """A trajectory in flight: one growing id buffer, and what segments are cut from it when they are read.

    Example:
        >>> r = Recording()
        >>> prompt = Segment(source="prompt", role="query", ids=(1, 2), text="q")
        >>> r.apply(RunStarted(trajectory_id="t", task=Task(query="q"), segments=(prompt,)))
        >>> list(r.ids)
        [1, 2]
    """

    __slots__ = ("_kept", "_started", "_stopped", "_turns", "ids")

    def __init__(self) -> None:
        self.ids = array("i")
        """Token ids of everything so far; what the engine is given next."""
        self._started: RunStarted | None = None
        self._stopped: RunStopped | None = None
        self._kept: list[Segment | _Span] = []
        self._turns: list[Turn] = []

    def apply(self, event: Event) -> None:
        """Record one event.

        Raises:
            DataError: The first event is not `RunStarted`.
        """
        match event:
            case RunStarted():
                self._started = event
                for segment in event.segments:  # which the members of a group share, so that nothing is gained
                    self.ids.extend(_packed(_Same(segment.ids)))
                    self._kept.append(segment)
            case TurnFinished():
                self._turns.append(event.turn)
                self._append(event.segment)
            case ToolOutput():
                for segment in event.segments:
                    self._append(segment)
            case RunStopped():
                self._stopped = event
        if self._started is None and isinstance(event, TurnFinished | ToolOutput):
            raise _misses_beginning()

    def _append(self, segment: Segment) -> None:
        start, size = len(self.ids), len(segment.ids)
        self.ids.frombytes(struct.pack(f"{size}i", *segment.ids))
        if size <= _SHORT:
            self._kept.append(segment)
            return
        scores = segment.logprobs
        logprobs = None if scores is None else array("d", struct.pack(f"{size}d", *scores))
        self._kept.append(_Span(start, len(self.ids), logprobs, _others_of(segment)))

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The tokens so far, by provenance; made anew each time."""
        return tuple(kept.cut(self.ids) if isinstance(kept, _Span) else kept for kept in self._kept)

    @property
    def turns(self) -> int:
        """Engine calls so far."""
        return len(self._turns)

    def trajectory(self, stop_reason: StopReason = StopReason.ABORTED) -> Trajectory:
        """Cut the trajectory as it is now.

        Args:
            stop_reason: Used while the run has not stopped.

        Raises:
            DataError: Nothing was recorded yet.
        """
        started, stopped = self._started, self._stopped
        if started is None:
            raise _misses_beginning()
        return Trajectory(
            id=started.trajectory_id,
            task=started.task,
            segments=self.segments,
            stop_reason=stop_reason if stopped is None else stopped.stop_reason,
            answer=None if stopped is None else stopped.answer,
            turns=tuple(self._turns),
            shots=started.shots,
            wall_s=0.0 if stopped is None else stopped.wall_s,
            error=None if stopped is None else stopped.error,
        )


def _misses_beginning() -> DataError:
    return DataError("events: the first event must be RunStarted")


class _Same:
    """Stands for one tuple, and not for its equals, which would take as long to find as to copy."""

    __slots__ = ("ids",)

    def __init__(self, ids: tuple[int, ...]) -> None:
        self.ids = ids

    def __hash__(self) -> int:
        return id(self.ids)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.ids is other.ids


@lru_cache(maxsize=64)
def _packed(same: _Same) -> array[int]:
    """Pack the ids of a prompt's segment; runs of one group, and most of one agent, share them."""
    return array("i", same.ids)


def fold(events: Iterable[Event]) -> Trajectory:
    """Rebuild the trajectory from its events, without reading `RunFinished`.

    Raises:
        DataError: The events do not begin with `RunStarted`.
    """
    recording = Recording()
    for event in events:
        recording.apply(event)
    return recording.trajectory()
