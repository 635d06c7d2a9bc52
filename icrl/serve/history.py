"""From a trajectory back to messages, so that the next request can continue the conversation."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import replace

from icrl.serve.client_tools import client_call_id
from icrl.trajectory import Segment, StopReason, Trajectory
from icrl.types import Message, ToolCall

__all__ = ["answer_messages"]


def answer_messages(trajectory: Trajectory, said: Mapping[int, str]) -> Iterator[Message]:
    """Yield what a run added to its conversation, turn by turn: what was said, the calls, and their results.

    Thoughts are left out, as the chat templates of thinking models leave them out. So are calls that could not be
    read, and calls that the end of the run left without an answer. A run that ended in calls of the client's tools is
    followed by their results, so that these calls stay, under the ids that the client knows.

    Args:
        trajectory: The run.
        said: The words that the client was shown, by turn.
    """
    answered = {result.call_id for result in trajectory.results}
    for segment in trajectory.response:
        if segment.source == "policy":
            calls = tuple(_told(trajectory, segment, answered))
            content = said.get(segment.turn, "").strip()
            if content or calls:
                yield Message(role="assistant", content=content, tool_calls=calls)
            answered -= {call.id for call in segment.calls if call.error is not None}
        elif segment.result is not None and segment.result.call_id in answered:
            yield Message(role="tool", content=segment.result.text, tool_call_id=segment.result.call_id)


def _told(trajectory: Trajectory, segment: Segment, answered: Container[str]) -> Iterator[ToolCall]:
    """Yield a turn's calls that have a result, or get one from the client."""
    handed_over = trajectory.stop_reason is StopReason.CLIENT_CALL and segment.turn == trajectory.turns[-1].index
    for call in segment.calls:
        if call.error is None and call.id in answered:
            yield call
        elif call.error is None and handed_over:
            yield replace(call, id=client_call_id(trajectory.id, call))
