"""Tools that the client runs itself: declared in a request, answered in the next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from icrl.errors import ConfigError
from icrl.runtime.tools.tool import ToolSpec
from icrl.serve.problem import invalid

__all__ = ["ClientTool", "client_specs"]


class ClientFunction(msgspec.Struct, kw_only=True):
    """A function as the chat protocol declares it."""

    name: str
    description: str = ""
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ClientTool(msgspec.Struct, kw_only=True):
    """A tool as the chat protocol declares it."""

    function: ClientFunction
    type: Literal["function"] = "function"


def client_specs(tools: Sequence[ClientTool]) -> tuple[ToolSpec, ...]:
    """Check declarations.

    Raises:
        Problem: A name, a schema or a repetition is wrong; the message names the tool.
    """
    specs: list[ToolSpec] = []
    for index, tool in enumerate(tools):
        function = tool.function
        if any(spec.name == function.name for spec in specs):
            raise invalid(f"tools[{index}].function.name", f"two tools are named {function.name!r}")
        try:
            specs.append(
                ToolSpec(
                    name=function.name,
                    description=function.description or f"The client's {function.name}.",
                    parameters=function.parameters or {"type": "object", "properties": {}},
                )
            )
        except ConfigError as error:
            raise invalid(f"tools[{index}].function", str(error)) from None
    return tuple(specs)
