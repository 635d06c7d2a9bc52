"""`POST /v1/chat/completions`: what a client may send, and what it means."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import msgspec

from icrl.serve.ask import Ask, Seed
from icrl.serve.call_turns import Placed, paired
from icrl.serve.client_tools import ClientTool, client_specs, is_tool_name, read_call, read_choice
from icrl.serve.config import AdmissionConfig
from icrl.serve.problem import invalid
from icrl.serve.sampling import read_sampling
from icrl.types import Message, ToolCall

__all__ = ["ChatRequest", "read_ask"]

MAX_STOP_STRINGS = 4
MAX_STOP_CHARS = 256


class TextPart(msgspec.Struct, tag="text"):
    """A piece of a message's text."""

    text: str


class CalledFunction(msgspec.Struct, kw_only=True):
    """What a call of an earlier assistant message named."""

    name: str
    arguments: str = "{}"


class EarlierCall(msgspec.Struct, kw_only=True):
    """A call of an earlier assistant message."""

    id: str
    function: CalledFunction
    type: Literal["function"] = "function"


class ServerCall(msgspec.Struct, kw_only=True):
    """A call that this server ran for an earlier answer, and its result."""

    id: str
    name: str
    arguments: dict[str, Any]
    output: str | None = None


class Facts(msgspec.Struct, kw_only=True):
    """What an earlier answer told in the field `icrl`."""

    tool_calls: list[ServerCall] = []


class ChatMessage(msgspec.Struct, kw_only=True):
    """One message; other fields that clients echo from earlier answers are ignored."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    tool_calls: list[EarlierCall] | None = None
    tool_call_id: str | None = None
    icrl: Facts | None = None


class StreamOptions(msgspec.Struct, kw_only=True):
    """How to stream."""

    include_usage: bool = False
    include_obfuscation: bool = False


class TextFormat(msgspec.Struct, kw_only=True):
    """The only response format there is."""

    type: Literal["text"] = "text"


class ChatRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The body. The fields of the last block are accepted because clients send them, and have no effect."""

    messages: list[ChatMessage]
    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    n: int | None = None
    seed: Seed | None = None
    stop: str | list[str] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[ClientTool] | None = None
    tool_choice: str | dict[str, Any] | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    response_format: TextFormat | None = None

    metadata: dict[str, str] | None = None
    modalities: list[Literal["text"]] | None = None
    parallel_tool_calls: bool | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    reasoning_effort: str | None = None
    safety_identifier: str | None = None
    service_tier: str | None = None
    store: bool | None = None
    user: str | None = None
    verbosity: str | None = None


def read_ask(body: ChatRequest, admission: AdmissionConfig) -> tuple[Ask, int]:
    """Turn a body into what is asked, and how many choices are wanted.

    Raises:
        Problem: A field is out of range, or asks for something that this server does not do.
    """
    if not 1 <= len(body.messages) <= admission.max_messages:
        raise invalid("messages", f"needs 1 to {admission.max_messages} messages, not {len(body.messages)}")
    choices = 1 if body.n is None else body.n
    if not 1 <= choices <= admission.max_choices:
        raise invalid("n", f"must be from 1 to {admission.max_choices}, not {choices}")
    for name in ("frequency_penalty", "presence_penalty"):
        if getattr(body, name) not in (None, 0):
            raise invalid(name, f"this server samples without penalties; leave it at 0, not {getattr(body, name)}")
    if body.top_logprobs not in (None, 0):
        raise invalid("top_logprobs", "only the sampled tokens' own logprobs are known; leave it at 0")
    placed = [each for i, message in enumerate(body.messages) for each in _placed(message, f"messages[{i}]")]
    messages = paired(placed, field="tool_call_id")
    if messages[-1].role not in ("user", "tool"):
        raise invalid("messages", f"the last one must be a user or tool message, not {messages[-1].role!r}")
    ask = Ask(
        messages=messages,
        sampling=read_sampling(body.temperature, body.top_p),
        seed=body.seed,
        stop=_stop(body),
        max_tokens=_max_tokens(body),
        client_tools=client_specs(body.tools or []),
        tool_choice=read_choice(body.tool_choice),
        metadata=body.metadata or {},
    )
    return ask, choices


def _stop(body: ChatRequest) -> tuple[str, ...]:
    stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    if len(stop) > MAX_STOP_STRINGS or not all(0 < len(word) <= MAX_STOP_CHARS for word in stop):
        raise invalid("stop", f"takes up to {MAX_STOP_STRINGS} strings of 1 to {MAX_STOP_CHARS} characters")
    return stop


def _max_tokens(body: ChatRequest) -> int | None:
    if body.max_tokens is not None and body.max_completion_tokens is not None:
        raise invalid("max_tokens", "is the old name of max_completion_tokens; give one of them")
    name = "max_tokens" if body.max_tokens is not None else "max_completion_tokens"
    most: int | None = getattr(body, name)
    if most is not None and most < 1:
        raise invalid(name, f"must be >= 1, not {most}")
    return most


def _placed(message: ChatMessage, place: str) -> Iterator[Placed]:
    """Read a message, after the calls that this server ran for it; one that was never answered is left out."""
    for call in message.icrl.tool_calls if message.icrl is not None and message.role == "assistant" else ():
        if call.output is not None and is_tool_name(call.name):
            asked = ToolCall(name=call.name, arguments=call.arguments, id=call.id)
            yield Placed(place, Message(role="assistant", content="", tool_calls=(asked,)))
            yield Placed(place, Message(role="tool", content=call.output, tool_call_id=call.id))
    yield Placed(place, _message(message, place))


def _message(message: ChatMessage, place: str) -> Message:
    content = message.content
    text = "".join(part.text for part in content) if isinstance(content, list) else content or ""
    role = "system" if message.role == "developer" else message.role
    if role in ("system", "user") and not text:
        raise invalid(f"{place}.content", "is empty")
    if role == "tool" and message.tool_call_id is None:
        raise invalid(f"{place}.tool_call_id", "is missing; it names the call that this message answers")
    calls = tuple(
        read_call(call.id, call.function.name, call.function.arguments, f"{place}.tool_calls[{i}].function")
        for i, call in enumerate(message.tool_calls or ())
    )
    if calls and role != "assistant":
        raise invalid(f"{place}.tool_calls", f"a {role} message makes no calls")
    return Message(role=role, content=text, tool_calls=calls, tool_call_id=message.tool_call_id)
