"""Reading off a chat template how it writes tools and their results."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from icrl.errors import ConfigError, DataError
from icrl.runtime.dialects.segments import after_turn
from icrl.runtime.tools.tool import ToolSpec
from icrl.tokenizer import Rendered, Special, Tokenizer
from icrl.types import Message, ToolCall

__all__ = ["RESPONSE", "Frame", "frame_of", "function_schema", "opens_thought", "split_response"]

_CALL = re.compile(r'<tool_call>\s*\{[^<]*"name":\s*"lookup"')
RESPONSE = "<tool_response>"
_RESPONSE = re.compile(f"(?={RESPONSE})")
_RESPONSE_END = re.compile(r"</tool_response>\n*")


def function_schema(spec: ToolSpec) -> dict[str, Any]:
    """Describe a tool as OpenAI's interface does, which templates expect."""
    function = {"name": spec.name, "description": spec.description, "parameters": spec.parameters}
    return {"type": "function", "function": function}


@lru_cache(maxsize=16)
def opens_thought(tokenizer: Tokenizer) -> bool:
    """Say whether the template begins the model's turn with `<think>`."""
    (rendered,) = tokenizer.render([Message(role="user", content="?")])
    return rendered.text.rstrip().endswith("<think>")


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """What a template writes around the results of one turn."""

    end: Special
    """Ends the model's turn."""
    before: Rendered
    """Stands between that and the first result."""
    around: tuple[tuple[Rendered, Rendered], ...]
    """Stand directly before and after each result's text."""
    after: Rendered
    """Stands between the last result and the model's next turn."""


@lru_cache(maxsize=64)
def frame_of(tokenizer: Tokenizer, results: int) -> Frame:
    """Read off the template how it writes the results of one turn.

    Raises:
        ConfigError: It writes no tools, or not in this dialect.
    """
    calls = tuple(ToolCall(name="lookup", id=str(index)) for index in range(results))
    told = [Message(role="tool", content="", tool_call_id=call.id) for call in calls]
    chat = [Message(role="user", content="?"), Message(role="assistant", content="", tool_calls=calls), *told]
    spec = ToolSpec(name="lookup", description="Look up.", parameters={"type": "object", "properties": {}})
    try:
        first, *rest = tokenizer.render(chat, tools=[function_schema(spec)], cuts=[(2 + i, 0) for i in range(results)])
    except (ConfigError, DataError) as error:
        raise _unfit(tokenizer) from error
    end, opening = after_turn(tokenizer, first)
    if spec.description not in first.text or not _CALL.search(first.text) or end is None:
        raise _unfit(tokenizer)
    before, *inner = _split(tokenizer, opening, _RESPONSE)
    seams = [split_response(tokenizer, part) for part in rest]
    heads = (*inner, *(following for _, following in seams[:-1]))
    around = tuple(zip(heads, (ending for ending, _ in seams), strict=True))
    return Frame(end=end, before=before, around=around, after=seams[-1][1])


def split_response(tokenizer: Tokenizer, part: Rendered) -> tuple[Rendered, Rendered]:
    """Cut what follows the beginning of a result behind that result's end; its text must be escaped.

    Raises:
        ConfigError: The template does not end results as the dialect needs it.
    """
    return _split(tokenizer, part, _RESPONSE_END)


def _split(tokenizer: Tokenizer, part: Rendered, where: re.Pattern[str]) -> tuple[Rendered, Rendered]:
    found = where.search(part.text)
    if found is None:
        raise _unfit(tokenizer)
    return part.split(found.end())


def _unfit(tokenizer: Tokenizer) -> ConfigError:
    return ConfigError(
        f"dialect: the chat template of {tokenizer.name} does not write <tool_call> and <tool_response>, which "
        "'hermes' needs; use 'xml', or a model whose template declares tools in that form"
    )
