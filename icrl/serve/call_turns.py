"""Calls and their results in what a client sends: which belong together, and what is missing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import islice
from typing import Literal, NamedTuple

from icrl.serve.problem import invalid
from icrl.types import Message, ToolCall

__all__ = ["Placed", "paired"]


class Placed(NamedTuple):
    """A message, and the field that it came in by."""

    place: str
    """Such as `messages[3]`."""
    message: Message
    """The message."""


def paired(messages: Iterable[Placed], *, field: Literal["tool_call_id", "call_id"]) -> tuple[Message, ...]:
    """Put every turn's results behind it, in the order of its calls, and what one turn said and called together.

    Args:
        messages: The conversation as it came.
        field: What the protocol calls the field of a result that names its call.

    Raises:
        Problem: A result answers no call of the turn before it, or a call has no result; the message names the field.

    Example:
        >>> call = ToolCall(name="now", id="call_1")
        >>> asks, told = Message(role="assistant", content="", tool_calls=(call,)), Message(role="tool", content="9 am")
        >>> chat = [Placed("messages[0]", asks), Placed("messages[1]", replace(told, tool_call_id="call_1"))]
        >>> [message.role for message in paired(chat, field="tool_call_id")]
        ['assistant', 'tool']
    """
    reading = _Reading(field)
    for placed in messages:
        reading.take(placed)
    reading.settle()
    return tuple(reading.messages)


class _Reading:
    """A conversation, read up to some message."""

    def __init__(self, field: str) -> None:
        self.messages: list[Message] = []
        self._field = field
        self._place = ""
        self._calls: dict[str, ToolCall] = {}
        self._results: dict[str, Message] = {}

    def take(self, placed: Placed) -> None:
        place, message = placed
        if message.role == "tool":
            self._answer(place, message)
        elif message.role == "system":
            self.messages.append(message)
        elif message.role == "assistant" and not self._results and self._is_one_turn(message):
            while self._is_one_turn(message):  # all that was said since anybody else spoke
                said = self.messages.pop()
                content = "\n\n".join(filter(None, (said.content, message.content)))
                message = replace(said, content=content, tool_calls=said.tool_calls + message.tool_calls)
            self._ask(place, message)
        else:
            self.settle()
            self._ask(place, message)

    def _is_one_turn(self, message: Message) -> bool:
        """Say whether a message belongs to the one before it: a turn that calls may come in several items."""
        last = self.messages[-1] if self.messages else None
        return last is not None and last.role == "assistant" and bool(last.tool_calls or message.tool_calls)

    def _ask(self, place: str, message: Message) -> None:
        self.messages.append(message)
        self._place, self._calls = place, {call.id: call for call in message.tool_calls}
        if len(self._calls) < len(message.tool_calls):
            raise invalid(f"{place}.{self._field}", "two calls of one turn have the same id")

    def _answer(self, place: str, message: Message) -> None:
        name = message.tool_call_id or ""
        if name in self._results:
            raise invalid(f"{place}.{self._field}", f"call {name!r} has a result already")
        if name not in self._calls:
            listed = ", ".join(map(repr, islice(self._calls, 8))) or "none"
            raise invalid(f"{place}.{self._field}", f"no call {name!r} waits for a result. Those are: {listed}")
        self._results[name] = message

    def settle(self) -> None:
        """Go on behind the results of a turn; all of its calls must have one."""
        for name, call in self._calls.items():
            if name not in self._results:
                raise invalid(self._place, f"call {name!r} of {call.name!r} has no result; send those of all calls")
        self.messages += [self._results[name] for name in self._calls]
        self._calls, self._results = {}, {}
