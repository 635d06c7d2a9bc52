"""From a trajectory back to messages, so that the next request can continue the conversation."""

from __future__ import annotations

from collections.abc import Iterator

from icrl.trajectory import Trajectory
from icrl.types import Message

__all__ = ["answer_messages"]


def answer_messages(trajectory: Trajectory, said: str) -> Iterator[Message]:
    """Yield what a run added to its conversation: calls, their results, and what was said at the end.

    Args:
        trajectory: The run.
        said: The words that the client was shown.
    """
    for segment in trajectory.response:
        if segment.calls:
            yield Message(role="assistant", content="", tool_calls=segment.calls)
        if segment.result is not None:
            yield Message(role="tool", content=segment.result.text, tool_call_id=segment.result.call_id)
    if said:
        yield Message(role="assistant", content=said)
