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

from array import array
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

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


class Recording:
    """A trajectory in flight: one growing id buffer, and the segments that were cut from it.

    Example:
        >>> r = Recording()
        >>> prompt = Segment(source="prompt", role="query", ids=(1, 2), text="q")
        >>> r.apply(RunStarted(trajectory_id="t", task=Task(query="q"), segments=(prompt,)))
        >>> list(r.ids)
        [1, 2]
    """

    __slots__ = ("_started", "_stopped", "_turns", "ids", "segments")

    def __init__(self) -> None:
        self.ids = array("i")
        """Token ids of everything so far; what the engine is given next."""
        self._started: RunStarted | None = None
        self._stopped: RunStopped | None = None
        self.segments: list[Segment] = []
        """The same tokens, by provenance."""
        self._turns: list[Turn] = []

    def apply(self, event: Event) -> None:
        """Record one event.

        Raises:
            DataError: The first event is not `RunStarted`.
        """
        match event:
            case RunStarted():
                self._started = event
                self._append(event.segments)
            case TurnFinished():
                self._turns.append(event.turn)
                self._append((event.segment,))
            case ToolOutput():
                self._append(event.segments)
            case RunStopped():
                self._stopped = event

    def _append(self, segments: Iterable[Segment]) -> None:
        if self._started is None:
            raise DataError("events: the first event must be RunStarted")
        for segment in segments:
            self.ids.extend(segment.ids)
            self.segments.append(segment)

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
        if self._started is None:
            raise DataError("events: the first event must be RunStarted")
        unfinished = Trajectory(
            id=self._started.trajectory_id,
            task=self._started.task,
            segments=tuple(self.segments),
            stop_reason=stop_reason,
            turns=tuple(self._turns),
            shots=self._started.shots,
        )
        if self._stopped is None:
            return unfinished
        return replace(
            unfinished,
            stop_reason=self._stopped.stop_reason,
            answer=self._stopped.answer,
            wall_s=self._stopped.wall_s,
            error=self._stopped.error,
        )


def fold(events: Iterable[Event]) -> Trajectory:
    """Rebuild the trajectory from its events, without reading `RunFinished`.

    Raises:
        DataError: The events do not begin with `RunStarted`.
    """
    recording = Recording()
    for event in events:
        recording.apply(event)
    return recording.trajectory()
