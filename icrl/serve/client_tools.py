"""Tools that the client runs itself: declared in a request, answered in the next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from icrl.errors import ConfigError
from icrl.runtime.tools.tool import ToolSpec
from icrl.serve.problem import invalid

__all__ = ["ClientTool", "FlatTool", "client_specs", "flat_specs"]


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


def _spec(place: str, function: ClientFunction) -> ToolSpec:
    try:
        return ToolSpec(
            name=function.name,
            description=function.description or f"The client's {function.name}.",
            parameters=function.parameters or {"type": "object", "properties": {}},
        )
    except ConfigError as error:
        raise invalid(place, str(error)) from None
