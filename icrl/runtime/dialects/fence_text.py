"""The text of the fenced dialect: instruction, programs, results, worked examples."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from icrl.errors import ConfigError, DataError
from icrl.runtime.dialects.arguments import bare_text, text_parameter
from icrl.runtime.dialects.fence_parser import FenceParser, Program
from icrl.runtime.dialects.foreign import escape
from icrl.runtime.dialects.inline import answer_text
from icrl.runtime.tools.snippet import unfenced
from icrl.runtime.tools.tool import ToolSpec
from icrl.types import Demonstration, Message

__all__ = [
    "TAGS",
    "Form",
    "assistant_text",
    "example",
    "fenceless",
    "instruction_text",
    "output",
    "program_text",
    "runner",
    "unboxed",
]

TAGS = ("think", "code", "answer", "interpreter")
"""The dialect's own tags."""

Form = Literal["interpreter", "output"]
"""How results are wrapped: in a tag, or in a block of that language."""

_FENCE = re.compile("`(?=``)")


def runner(tools: Sequence[ToolSpec]) -> ToolSpec | None:
    """Return the tool that runs programs; `None` where there are no tools at all.

    Raises:
        ConfigError: There are several tools, or the one does not take one string.
    """
    if not tools:
        return None
    if len(tools) > 1 or text_parameter(tools[0]) is None:
        names = ", ".join(spec.name for spec in tools)
        raise ConfigError(
            f"dialect: 'fence' calls one tool, which takes one string, such as python, and not {names}; "
            "give the agent only that tool, or use 'xml' or 'hermes'"
        )
    return tools[0]


def instruction_text(template: str, tool: ToolSpec | None, form: Form) -> str:
    r"""Fill in how to use the tool, and end with an empty line.

    Example:
        >>> instruction_text("Answer. {tools}", None, "interpreter")
        'Answer.\n\n'
    """
    place = "between <interpreter> and </interpreter>" if form == "interpreter" else "in an ```output block"
    usage = f"A ```python block ends your turn, and its result follows {place}: {tool.description}" if tool else ""
    text = template.replace("{tools}", usage).rstrip()
    return text and f"{text}\n\n"


def program_text(program: Program) -> str:
    """Return the program itself, without the layout around it."""
    if program.mark == "<code>":
        code = unfenced(program.body)
        return bare_text(code) if code == program.body else code
    margin = len(program.mark) - len(program.mark.lstrip(" "))
    return re.sub(rf"^ {{0,{margin}}}", "", program.body.removeprefix("\n"), flags=re.MULTILINE)


def unboxed(answer: str) -> str:
    r"""Return the content of the last `\\boxed{}` in an answer; without one, the answer.

    Example:
        >>> unboxed(r"so \boxed{\frac{1}{2}}."), unboxed("4")
        ('\\frac{1}{2}', '4')
    """
    parser = FenceParser(None)
    parser.feed(answer)
    parser.close()
    return answer if parser.boxed is None else parser.boxed


def fenceless(text: str) -> str:
    """Escape fences in foreign text.

    Example:
        >>> fenceless("```")
        '&#96;``'
    """
    return _FENCE.sub("&#96;", text)


def output(text: str, form: Form) -> str:
    """Wrap a result; its text must be escaped."""
    return f"<interpreter>\n{text}\n</interpreter>\n" if form == "interpreter" else f"```output\n{text}\n```\n"


def assistant_text(message: Message, tool: ToolSpec | None, form: Form) -> str:
    """Write what an assistant message says and calls, or what a tool's message tells.

    Raises:
        DataError: A call is not a program for the tool.
    """
    if message.role == "tool":
        return output(escape(fenceless(message.content), TAGS), form)
    if not message.tool_calls:
        return answer_text(message.content, ("<answer>", "<think>", "<code>", "```", "\\boxed{"))
    calls = [_fenced(call.name, call.arguments, tool, "messages") for call in message.tool_calls]
    return "\n".join(filter(None, (message.content, *calls)))


def example(demonstration: Demonstration, tool: ToolSpec | None, form: Form, query_prefix: str) -> str:
    """Write a worked example, ending with an empty line.

    Raises:
        DataError: A step is not a program for the tool.
    """
    text = f"{query_prefix}{demonstration.query}\n"
    for step in demonstration.steps:
        text += _line(step.thought) + _fenced(step.tool, step.arguments, tool, "demonstrations")
        text += output(escape(fenceless(step.result), TAGS), form)
    return f"{text}{_line(demonstration.thought)}<answer> {demonstration.answer} </answer>\n\n"


def _line(thought: str) -> str:
    return thought and f"{thought}\n"


def _fenced(name: str, arguments: Mapping[str, Any], tool: ToolSpec | None, where: str) -> str:
    """Write a program; what `program_text` reads is the same, unless a line of it is a fence."""
    code = next(iter(arguments.values()), None)
    if len(arguments) != 1 or not isinstance(code, str) or (tool is not None and name != tool.name):
        wanted = "one program" if tool is None else f"a program for {tool.name}"
        raise DataError(
            f"{where}: a call of {name!r} with {', '.join(arguments) or 'no arguments'} is not {wanted}, and the "
            "'fence' dialect can write nothing else; use 'xml' or 'hermes'"
        )
    return f"```python\n{code}\n```\n"
