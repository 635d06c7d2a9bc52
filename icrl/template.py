"""Chat templates: conversations rendered through a model's own Jinja template, with foreign text kept apart.

A template writes added tokens such as `<|im_end|>`, and the same characters may stand in the messages that are put
into it. The first are structure, the second are plain text. To tell them apart after rendering, added tokens in
messages are marked beforehand with private-use characters that occur nowhere in the conversation; what the template
wrote itself carries no mark.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from itertools import pairwise
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from icrl.errors import ConfigError, DataError
from icrl.rendered import AddedTokens, Marks, Rendered
from icrl.types import Message, ToolCall

__all__ = ["ChatTemplate"]

_OWN_THOUGHT = re.compile(r"(\s*<think>)(.*?)(</think>)", re.DOTALL)


class ChatTemplate:
    """A compiled chat template.

    Args:
        source: Jinja source, as in `chat_template.jinja`.
        name: The model's name, for messages.
        added: The tokenizer's added tokens.
        variables: Values such as `bos_token` that the template may use.

    Raises:
        ConfigError: The source is not a valid template.

    Example:
        >>> from icrl.rendered import AddedToken, AddedTokens
        >>> added = AddedTokens((AddedToken(id=7, content="<|end|>"),))
        >>> source = "{% for m in messages %}{{ m.role }}: {{ m.content }}<|end|>{% endfor %}"
        >>> template = ChatTemplate(source, name="example", added=added, variables={})
        >>> template.render([Message(role="user", content="not an <|end|>")])[0].pieces
        ('user: not an <|end|>', Special(id=7, text='<|end|>'))
    """

    def __init__(self, source: str, *, name: str, added: AddedTokens, variables: Mapping[str, str]) -> None:
        self._name = name
        self._added = added
        self._variables = dict(variables)
        self._source = source
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateError as error:
            raise ConfigError(f"chat_template: the one of {name} is invalid ({error})") from error

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        cuts: Sequence[tuple[int, int]] = (),
        generate: bool = True,
    ) -> tuple[Rendered, ...]:
        """Render a conversation, and cut the result.

        A think block that opens an assistant message is structure, as the template may read it; every other added
        token in a message, a tool's schema or a call's arguments is plain text.

        Args:
            messages: The conversation.
            tools: Functions to declare, in OpenAI's form.
            cuts: Where to cut, as (message, character of its content), in order of appearance.
            generate: Whether to open an assistant turn at the end.

        Returns:
            `len(cuts) + 1` parts that join to the whole.

        Raises:
            DataError: The template refuses the conversation, or leaves out a message that is to be cut.
        """
        plain = [_as_mapping(message) for message in messages]
        marks = Marks.absent_from(self._source, *self._added.contents, *_strings([plain, list(tools)]))
        offsets = [[at for message, at in cuts if message == index] for index in range(len(plain))]
        text = self._fill(
            messages=[self._hide_message(m, o, marks) for m, o in zip(plain, offsets, strict=True)],
            tools=self._quote(list(tools), marks) or None,
            add_generation_prompt=generate,
        )
        parts = text.split(marks.cut)
        if len(parts) != len(cuts) + 1:
            raise DataError(f"messages: the chat template of {self._name} drops or repeats a message")
        return tuple(self._added.parse(part, marks) for part in parts)

    def _fill(self, **context: Any) -> str:
        try:
            return self._template.render(documents=None, **context, **self._variables)
        except (jinja2.TemplateError, TypeError, ValueError, LookupError) as error:
            raise DataError(f"messages: the chat template of {self._name} refuses them ({error})") from error

    def _hide_message(self, message: dict[str, Any], cuts: list[int], marks: Marks) -> dict[str, Any]:
        content: str = message["content"]
        bounds = (0, *cuts, len(content))
        parts = [self._added.hide(content[a:b], marks) for a, b in pairwise(bounds)]
        own = _OWN_THOUGHT.match(content) if message["role"] == "assistant" and not cuts else None
        if own is not None:
            thought, rest = (self._added.hide(text, marks) for text in (own[2], content[own.end() :]))
            parts = [own[1] + thought + own[3] + rest]
        hidden: dict[str, Any] = self._quote({**message, "content": ""}, marks)
        return hidden | {"content": marks.cut.join(parts)}

    def _quote(self, value: Any, marks: Marks) -> Any:
        """Mark the added tokens in JSON data; a template writes it between quotation marks."""
        if isinstance(value, str):
            return self._added.quote(value, marks)
        if isinstance(value, Mapping):
            return {self._quote(key, marks): self._quote(item, marks) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._quote(item, marks) for item in value]
        return value


def _as_mapping(message: Message) -> dict[str, Any]:
    mapping: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        mapping["tool_calls"] = [_call_as_mapping(call) for call in message.tool_calls]
    if message.tool_call_id is not None:
        mapping["tool_call_id"] = message.tool_call_id
    return mapping


def _call_as_mapping(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": dict(call.arguments)}
    return {"type": "function", "id": call.id, "function": function}


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _strings(key)
            yield from _strings(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item)


class _Generation(Extension):
    """Accepts `{% generation %}…{% endgeneration %}`, which marks assistant text in training templates."""

    tags = {"generation"}  # noqa: RUF012 - declared so by jinja2

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


@lru_cache(maxsize=1)
def _environment() -> ImmutableSandboxedEnvironment:
    """Build the environment that chat templates are written for; they are code from elsewhere, hence the sandbox."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Write JSON as it is: Jinja's own filter escapes HTML, which no model was trained on."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(layout: str) -> str:
    return datetime.now().strftime(layout)
