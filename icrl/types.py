"""What is asked, and how: messages, tasks, demonstrations, sampling, limits.

The words of the house, without tokens; what happened to them is in `icrl.trajectory`. All are immutable, compare by
value and travel as JSON (`icrl.wire`). Laws are checked on construction, so a value that exists is a value that holds
them.

    Message, ToolCall, ToolResult    the words of a conversation
    Task, Demonstration, Step        what is asked, and worked examples of how to use tools
    SamplingParams, Limits           how to sample, when to stop
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from icrl.errors import DataError

__all__ = [
    "Demonstration",
    "Limits",
    "Message",
    "SamplingParams",
    "Step",
    "Task",
    "ToolCall",
    "ToolResult",
    "check",
]


def check(condition: bool, field_name: str, problem: str) -> None:
    """Raise a `DataError` that names the field, unless the condition holds."""
    if not condition:
        raise DataError(f"{field_name}: {problem}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A request by the model to run a tool.

    Example:
        >>> ToolCall(name="search", arguments={"query": "mayor of Rikor"}).name
        'search'
    """

    name: str
    """The tool's name as the model wrote it."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """JSON object of arguments; not yet validated against the tool's schema."""
    id: str = ""
    """Unique within the trajectory (`"<turn>.<index>"`), given by the runtime."""
    error: str | None = None
    """Why the call could not be parsed; such a call is answered with this message instead of being run."""
    start: int = 0
    """First token of the call within its segment; a tag may begin inside that token."""
    end: int = 0
    """One past the last token of the call within its segment."""

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.end:
            raise DataError(f"ToolCall.end: range {self.start}:{self.end} runs backwards")


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolResult:
    """What a tool answered.

    Example:
        >>> ToolResult(call_id="0.0", name="search", text="The mayor of Rikor is Nubar.").error is None
        True
    """

    call_id: str
    """The `ToolCall.id` it answers."""
    name: str
    """The tool's name."""
    text: str
    """What the model is shown, before the dialect wraps it."""
    error: str | None = None
    """Class name of the `ToolError` (`"ToolTimeout"`, …), or `None` on success."""
    wall_s: float = 0.0
    """Seconds from asking to answer, queueing included."""
    truncated: bool = False
    """Whether the text was cut to the observation limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message of a conversation, in OpenAI's vocabulary."""

    role: Literal["system", "user", "assistant", "tool"]
    """Who speaks."""
    content: str
    """The text; may be empty where an assistant message only calls tools."""
    tool_calls: tuple[ToolCall, ...] = ()
    """Calls that an assistant message makes."""
    tool_call_id: str | None = None
    """The call that a tool message answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """Something to solve: a query, and the reference answers where they are known.

    Example:
        >>> Task(query="What is the code of Rikor?", answers=("113",)).messages[0].role
        'user'
    """

    query: str | tuple[Message, ...]
    """A question, or a conversation that ends in a user message or in the results of tool calls."""
    answers: tuple[str, ...] = ()
    """Acceptable answers; empty where there is nothing to score."""
    id: str = ""
    """Stable name, for reports and resumption."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """Anything a reward or report wants to know."""

    def __post_init__(self) -> None:
        check(len(self.query) > 0, "Task.query", "is empty")

    @property
    def messages(self) -> tuple[Message, ...]:
        """The query as messages; a string is one user message."""
        return (Message(role="user", content=self.query),) if isinstance(self.query, str) else self.query


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One tool use of a demonstration."""

    tool: str
    """Name of the tool."""
    arguments: Mapping[str, Any]
    """Arguments of the call."""
    result: str
    """What the tool answered."""
    thought: str = ""
    """Reasoning written before the call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Demonstration:
    """A worked example that rollout prompts show until the curriculum takes it away.

    Example:
        >>> step = Step(tool="search", arguments={"query": "code of Rikor"}, result="The code of Rikor is 113.")
        >>> Demonstration(query="What is the code of Rikor?", steps=(step,), answer="113").steps[0].tool
        'search'
    """

    query: str
    """The example's question."""
    answer: str
    """Its final answer."""
    steps: tuple[Step, ...] = ()
    """Its tool uses, in order."""
    thought: str = ""
    """Reasoning written between the last result and the answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How to draw tokens from one engine call."""

    temperature: float = 1.0
    """Divides the logits; 0 means greedy."""
    top_p: float = 1.0
    """Keep the smallest set of tokens whose probability reaches this; 1 keeps all."""
    top_k: int = 0
    """Keep this many of the likeliest tokens; 0 keeps all."""
    max_tokens: int = 256
    """Tokens to sample at most."""
    stop: tuple[str, ...] = ()
    """Strings that end generation once they appear; their tokens stay in the result."""
    seed: int = 0
    """Selects the request's own random stream: token *i* depends on (seed, i) and the distribution only."""

    def __post_init__(self) -> None:
        # One is made for every turn, so the messages are only written where they are needed.
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise _refused("temperature", "a finite number >= 0", self.temperature)
        if not 0 < self.top_p <= 1:
            raise _refused("top_p", "in (0, 1]", self.top_p)
        if not self.top_k >= 0:
            raise _refused("top_k", ">= 0 (0 keeps all tokens)", self.top_k)
        if not self.max_tokens >= 1:
            raise _refused("max_tokens", ">= 1", self.max_tokens)
        check(all(self.stop), "stop", "must not contain an empty string")


def _refused(field_name: str, wanted: str, value: object) -> DataError:
    return DataError(f"{field_name}: must be {wanted}, not {value!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """When a trajectory has to end; reaching one is a `StopReason`, never an exception."""

    max_turns: int = 8
    """Engine calls."""
    max_tokens: int = 4096
    """Response tokens: everything after the prompt, observations included."""
    max_tool_calls: int = 16
    """Tool calls over the whole trajectory."""
    max_observation_tokens: int = 1024
    """Tokens of one tool result; longer results are cut in the middle, with a notice."""
    deadline_s: float = 600.0
    """Wall-clock seconds for the whole trajectory."""

    def __post_init__(self) -> None:
        for name in ("max_turns", "max_tokens", "max_observation_tokens"):
            check(getattr(self, name) >= 1, name, f"must be >= 1, not {getattr(self, name)!r}")
        check(self.max_tool_calls >= 0, "max_tool_calls", f"must be >= 0, not {self.max_tool_calls!r}")
        check(self.deadline_s > 0, "deadline_s", f"must be > 0 seconds, not {self.deadline_s!r}")
