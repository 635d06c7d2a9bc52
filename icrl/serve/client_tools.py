"""Tools that the client runs itself: declared in a request, answered in the next."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from icrl.errors import ConfigError
from icrl.runtime.tools.tool import ToolSpec
from icrl.serve.ask import ToolChoice
from icrl.serve.problem import invalid
from icrl.types import ToolCall

__all__ = [
    "ClientTool",
    "FlatTool",
    "client_call_id",
    "client_specs",
    "flat_specs",
    "is_tool_name",
    "read_call",
    "read_choice",
]

MAX_DEPTH = 32
"""Levels of a schema or of a call's arguments."""
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")


class ClientFunction(msgspec.Struct, kw_only=True):
    """A function as both protocols describe it."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ClientTool(msgspec.Struct, kw_only=True):
    """A tool as the chat protocol declares it."""

    function: ClientFunction
    type: Literal["function"] = "function"


class FlatTool(ClientFunction, kw_only=True):
    """A tool as the Responses protocol declares it."""

    type: Literal["function"] = "function"


def client_specs(tools: Sequence[ClientTool]) -> tuple[ToolSpec, ...]:
    """Check declarations of the chat protocol.

    Raises:
        Problem: A name, a schema or a repetition is wrong; the message names the tool.
    """
    return _specs([(f"tools[{i}].function", tool.function) for i, tool in enumerate(tools)])


def flat_specs(tools: Sequence[FlatTool]) -> tuple[ToolSpec, ...]:
    """Check declarations of the Responses protocol.

    Raises:
        Problem: A name, a schema or a repetition is wrong; the message names the tool.
    """
    return _specs([(f"tools[{i}]", tool) for i, tool in enumerate(tools)])


def _specs(functions: Sequence[tuple[str, ClientFunction]]) -> tuple[ToolSpec, ...]:
    specs: dict[str, ToolSpec] = {}
    for place, function in functions:
        if function.name in specs:
            raise invalid(f"{place}.name", f"two tools are named {function.name!r}")
        specs[function.name] = _spec(place, function)
    return tuple(specs.values())


class _Parameters(msgspec.Struct, kw_only=True):
    """What is read off a schema; the rest of it is only shown."""

    properties: dict[str, dict[str, Any]] = {}
    required: list[str] = []


def _spec(place: str, function: ClientFunction) -> ToolSpec:
    try:
        msgspec.convert(function.parameters or {}, _Parameters)
    except msgspec.ValidationError as error:
        raise invalid(f"{place}.parameters", f"is not an object's schema: {error}") from None
    if _is_deeper(function.parameters, MAX_DEPTH):
        raise invalid(f"{place}.parameters", f"is nested in more than {MAX_DEPTH} levels")
    try:
        return ToolSpec(
            name=function.name,
            description=function.description or f"The client's {function.name}.",
            parameters=function.parameters or {"type": "object", "properties": {}},
        )
    except ConfigError as error:
        raise invalid(place, str(error)) from None


def _is_deeper(value: Any, levels: int) -> bool:
    inside = [value]
    for _ in range(levels):
        held = [item.values() if isinstance(item, dict) else item for item in inside if isinstance(item, dict | list)]
        inside = [child for children in held for child in children]
    return any(isinstance(item, dict | list) for item in inside)


def read_choice(value: str | dict[str, Any] | None) -> ToolChoice:
    """Read whether tools may be called.

    Raises:
        Problem: A call is demanded, which no sampling can promise.

    Example:
        >>> read_choice(None), read_choice("none")
        ('auto', 'none')
    """
    if value in (None, "auto"):
        return "auto"
    if value == "none":
        return "none"
    wanted = value if isinstance(value, str) else "a named tool"
    raise invalid("tool_choice", f"must be 'auto' or 'none', not {wanted!r}: no call can be forced here")


def read_call(id: str, name: str, arguments: str, place: str) -> ToolCall:  # noqa: A002 - the protocol's word
    """Read a call of an earlier turn.

    Raises:
        Problem: Its name is no tool's, or its arguments are no JSON object; the message names the field.

    Example:
        >>> read_call("call_1", "weather", '{"city": "Rikor"}', "input[0]").arguments
        {'city': 'Rikor'}
    """
    if not is_tool_name(name):
        raise invalid(f"{place}.name", f"{name[:64]!r} cannot be the name of a tool")
    try:
        decoded = msgspec.json.decode(arguments, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise invalid(f"{place}.arguments", f"must be a JSON object ({error})") from None
    if _is_deeper(decoded, MAX_DEPTH):
        raise invalid(f"{place}.arguments", f"is nested in more than {MAX_DEPTH} levels")
    return ToolCall(name=name, arguments=decoded, id=id)


def is_tool_name(name: str) -> bool:
    """Say whether a tool can have this name."""
    return _NAME.fullmatch(name) is not None


def client_call_id(trajectory_id: str, call: ToolCall) -> str:
    """Name a call for the client: other than the runtime's own names, no two runs share these.

    Example:
        >>> client_call_id("6f", ToolCall(name="weather", id="1.0"))
        'call_6f_1_0'
    """
    return f"call_{trajectory_id}_{call.id.replace('.', '_')}"
