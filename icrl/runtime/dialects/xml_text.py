"""The text of the tagged dialect: instruction, calls, results, worked examples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from icrl.errors import DataError
from icrl.runtime.dialects.arguments import bare_text, read_object, text_parameter
from icrl.runtime.dialects.foreign import escape
from icrl.runtime.dialects.inline import answer_text
from icrl.runtime.dialects.xml_parser import RESERVED
from icrl.runtime.tools.tool import ToolSpec
from icrl.types import Demonstration, Message

__all__ = ["assistant_text", "example", "information", "instruction_text", "read_arguments", "reserved_tags"]


def instruction_text(template: str, tools: Sequence[ToolSpec], foreign: Sequence[ToolSpec] = ()) -> str:
    """Fill in the tags and the tools, and end with an empty line.

    Args:
        template: The instruction.
        tools: What may be called.
        foreign: What may be called besides; told even where the instruction has no place for tools, and escaped.

    Example:
        >>> instruction_text("You can {tags}.", []).strip()
        'You can <think> </think> and <answer> </answer>.'
    """
    names = [spec.name for spec in (*tools, *foreign)]
    *most, last = [f"<{name}> </{name}>" for name in ("think", *names, "answer")]
    lines = [*map(_usage, tools)] if "{tools}" in template else []
    lines += [_usage(spec, reserved_tags(names)) for spec in foreign]
    if foreign and "{tools}" not in template:
        template = f"{template.rstrip()}\n{{tools}}"
    tags = f"{' , '.join(most)} and {last}"
    text = template.replace("{tags}", tags).replace("{tools}", "\n".join(lines)).rstrip()
    return text and f"{text}\n\n"


def _usage(spec: ToolSpec, tags: Sequence[str] = ()) -> str:
    """Write a line on a tool, with its words escaped where they are foreign."""
    bare = text_parameter(spec)
    properties = spec.parameters.get("properties", {})
    body = bare or msgspec.json.encode({key: value.get("type", "any") for key, value in properties.items()}).decode()
    words = [escape(text, tags) if tags else text for text in (body, spec.description)]
    return f"<{spec.name}> {words[0]} </{spec.name}>: {words[1]}"


def read_arguments(spec: ToolSpec, body: str) -> dict[str, Any]:
    """Read the arguments of a call.

    Args:
        spec: The tool.
        body: What stands between its tags.

    Raises:
        DataError: The body does not fit; the message is for the model.
    """
    bare = text_parameter(spec)
    if not body.strip():
        wanted = f"the {bare}" if bare else "a JSON object of arguments"
        raise DataError(f"<{spec.name}> is empty; write {wanted} between the tags")
    if bare:
        return {bare: bare_text(body)}
    return read_object(body, f"the body of <{spec.name}>")


def call_text(name: str, arguments: Mapping[str, Any], tools: Iterable[ToolSpec]) -> str:
    """Write a call; the inverse of `read_arguments`."""
    spec = next((spec for spec in tools if spec.name == name), None)
    bare = None if spec is None else text_parameter(spec)
    text = arguments[bare] if bare and arguments.keys() == {bare} else msgspec.json.encode(arguments).decode()
    space = "\n" if "\n" in text else " "
    return f"<{name}>{space}{text}{space}</{name}>"


def information(text: str) -> str:
    """Wrap a result; its text must be escaped."""
    return f"\n<information> {text} </information>\n"


def reserved_tags(names: Iterable[str]) -> tuple[str, ...]:
    """Return the tags to escape in results of these tools."""
    return (*RESERVED, *sorted(set(names) - set(RESERVED)))


def example(demonstration: Demonstration, tools: Sequence[ToolSpec], query_prefix: str) -> str:
    """Write a worked example, ending with an empty line."""
    tags = reserved_tags(step.tool for step in demonstration.steps)
    text = f"{query_prefix}{demonstration.query}\n"
    for step in demonstration.steps:
        text += _thought(step.thought) + call_text(step.tool, step.arguments, tools)
        text += information(escape(step.result, tags))
    return f"{text}{_thought(demonstration.thought)}<answer> {demonstration.answer} </answer>\n\n"


def _thought(text: str) -> str:
    return text and f"<think> {text} </think>\n"


def assistant_text(message: Message, tools: Sequence[ToolSpec]) -> str:
    """Write what an assistant message says and calls; what it says without a call is its answer."""
    if not message.tool_calls:
        return answer_text(message.content, [f"<{name}>" for name in reserved_tags(spec.name for spec in tools)])
    calls = [call_text(call.name, call.arguments, tools) for call in message.tool_calls]
    return "\n".join(filter(None, (message.content, *calls)))
