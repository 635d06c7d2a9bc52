"""A request, whichever protocol it came in by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

import msgspec

from icrl.runtime.tools.tool import ToolSpec
from icrl.types import Message, SamplingParams

__all__ = ["Ask", "Seed", "ToolChoice"]

ToolChoice = Literal["auto", "none"]
"""Whether tools may be called at all."""

Seed = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
"""What every engine takes for a seed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What a client wants, checked.

    Example:
        >>> Ask(messages=(Message(role="user", content="What is the code of Rikor?"),)).seed is None
        True
    """

    messages: tuple[Message, ...]
    """The conversation; it ends in a user message, or in the results of the client's own tools."""
    sampling: SamplingParams = field(default_factory=SamplingParams)
    """How to sample; its `seed`, `stop` and `max_tokens` are not read, the fields below are."""
    seed: int | None = None
    """Makes the answer repeatable; random if not given."""
    stop: tuple[str, ...] = ()
    """Strings that end the answer's words."""
    max_tokens: int | None = None
    """Tokens of the response at most, observations included; the server's own limit holds in any case."""
    max_tool_calls: int | None = None
    """Calls of the server's tools at most; the server's own limit holds in any case."""
    client_tools: tuple[ToolSpec, ...] = ()
    """Tools that the client runs itself."""
    tool_choice: ToolChoice = "auto"
    """Whether tools may be called."""
    place: Literal["messages", "input", "query"] = "messages"
    """The field that held the conversation, for messages about it."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """Returned as it came."""
