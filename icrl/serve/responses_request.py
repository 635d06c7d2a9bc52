"""`POST /v1/responses`: what a client may send, and what it means."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from icrl.serve.ask import Ask, Seed
from icrl.serve.call_turns import Placed, paired
from icrl.serve.client_tools import FlatTool, flat_specs, is_tool_name, read_call, read_choice
from icrl.serve.config import AdmissionConfig
from icrl.serve.problem import invalid
from icrl.serve.sampling import read_sampling
from icrl.types import Message

__all__ = ["ResponsesRequest", "input_messages", "read_ask"]


class InputText(msgspec.Struct, tag="input_text"):
    """A piece of what the user wrote."""

    text: str


class OutputText(msgspec.Struct, tag="output_text"):
    """A piece of what the model wrote earlier."""

    text: str


class InputMessage(msgspec.Struct, tag="message", kw_only=True):
    """A message."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[InputText | OutputText]


class InputReasoning(msgspec.Struct, tag="reasoning", kw_only=True):
    """Reasoning of an earlier answer, which the model does not read again."""


class InputServerCall(msgspec.Struct, tag="mcp_call", kw_only=True):
    """A call that this server ran in an earlier answer."""

    name: str
    arguments: str = "{}"
    output: str | None = None
    error: dict[str, Any] | str | None = None
    id: str = ""


class InputCall(msgspec.Struct, tag="function_call", kw_only=True):
    """A call of the client's own tool in an earlier answer."""

    call_id: str
    name: str
    arguments: str = "{}"


class InputCallOutput(msgspec.Struct, tag="function_call_output", kw_only=True):
    """What the client's own tool answered."""

    call_id: str
    output: str | list[InputText]


InputItem = InputMessage | InputReasoning | InputServerCall | InputCall | InputCallOutput


class PlainFormat(msgspec.Struct, kw_only=True):
    """The only output format there is."""

    type: Literal["text"] = "text"


class TextOptions(msgspec.Struct, kw_only=True):
    """How text is to be written."""

    format: PlainFormat | None = None
    verbosity: str | None = None


class ResponsesRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The body. The fields of the last block are accepted because clients send them, and have no effect."""

    input: str | list[dict[str, Any]]
    model: str | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    stream: bool | None = None
    store: bool | None = None
    max_output_tokens: int | None = None
    max_tool_calls: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: Seed | None = None
    tools: list[FlatTool] | None = None
    tool_choice: str | dict[str, Any] | None = None
    metadata: dict[str, str] | None = None
    background: Literal[False] | None = None
    text: TextOptions | None = None
    top_logprobs: Literal[0] | None = None
    truncation: Literal["disabled"] | None = None

    include: list[str] | None = None
    parallel_tool_calls: bool | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    reasoning: dict[str, Any] | None = None
    safety_identifier: str | None = None
    service_tier: str | None = None
    stream_options: dict[str, Any] | None = None
    user: str | None = None


def read_ask(body: ResponsesRequest, earlier: Sequence[Message], admission: AdmissionConfig) -> Ask:
    """Turn a body into what is asked.

    Args:
        body: The decoded body.
        earlier: The conversation that `previous_response_id` names.
        admission: The server's bounds.

    Raises:
        Problem: A field is out of range, or asks for something that this server does not do.
    """
    own = input_messages(body.input, admission.max_messages)
    placed = [*(Placed("previous_response_id", message) for message in earlier), *own]
    system = () if body.instructions is None else (Message(role="system", content=body.instructions),)
    if len(earlier) + len(own) > admission.max_messages:
        raise invalid("input", f"the conversation has more than {admission.max_messages} messages")
    if not own or own[-1].message.role not in ("user", "tool"):
        raise invalid("input", "must end in a user message, or in the output of a function call")
    for name, least in (("max_output_tokens", 1), ("max_tool_calls", 0)):
        value = getattr(body, name)
        if value is not None and value < least:
            raise invalid(name, f"must be >= {least}, not {value}")
    return Ask(
        messages=(*system, *paired(placed, field="call_id")),
        sampling=read_sampling(body.temperature, body.top_p),
        seed=body.seed,
        max_tokens=body.max_output_tokens,
        max_tool_calls=body.max_tool_calls,
        place="input",
        client_tools=flat_specs(body.tools or []),
        tool_choice=read_choice(body.tool_choice),
        metadata=body.metadata or {},
    )


def input_messages(given: str | list[dict[str, Any]], max_items: int) -> tuple[Placed, ...]:
    """Read the input as messages.

    Raises:
        Problem: An item is wrong; the message names it.
    """
    if isinstance(given, str):
        if not given:
            raise invalid("input", "is empty")
        return (Placed("input", Message(role="user", content=given)),)
    if not 1 <= len(given) <= max_items:
        raise invalid("input", f"needs 1 to {max_items} items, not {len(given)}")
    places = [f"input[{i}]" for i in range(len(given))]
    return tuple(Placed(at, message) for at, item in zip(places, given, strict=True) for message in _messages(item, at))


def _messages(raw: dict[str, Any], place: str) -> list[Message]:
    # A message may leave out its type, as clients do.
    tagged = raw if "type" in raw else {"type": "message", **raw}
    try:
        item = msgspec.convert(tagged, InputItem)
    except msgspec.ValidationError as error:
        raise invalid(place, str(error)) from None
    match item:
        case InputMessage(role=role, content=content):
            text = content if isinstance(content, str) else "".join(part.text for part in content)
            if not text and role != "assistant":
                raise invalid(f"{place}.content", "is empty")
            return [Message(role="system" if role == "developer" else role, content=text)]
        case InputServerCall():
            return _server_call(item, place)
        case InputCall():
            call = read_call(item.call_id, item.name, item.arguments, place)
            return [Message(role="assistant", content="", tool_calls=(call,))]
        case InputCallOutput(call_id=call_id, output=output):
            text = output if isinstance(output, str) else "".join(part.text for part in output)
            return [Message(role="tool", content=text, tool_call_id=call_id)]
        case _:
            return []


def _server_call(item: InputServerCall, place: str) -> list[Message]:
    """Read a call with its result; one that was never answered, or named no tool, is left out."""
    error = item.error.get("content") if isinstance(item.error, dict) else item.error
    told = item.output if error is None else str(error)
    if told is None or not is_tool_name(item.name):
        return []
    call = read_call(item.id or place, item.name, item.arguments, place)
    return [
        Message(role="assistant", content="", tool_calls=(call,)),
        Message(role="tool", content=told, tool_call_id=call.id),
    ]
