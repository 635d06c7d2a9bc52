"""The dialect that chat templates of the Hermes and Qwen families declare tools in."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from icrl.errors import DataError
from icrl.runtime.dialects.arguments import read_object
from icrl.runtime.dialects.foreign import escape, escape_all
from icrl.runtime.dialects.hermes_continued import continuation
from icrl.runtime.dialects.hermes_parser import CallBlock, HermesParser
from icrl.runtime.dialects.hermes_template import frame_of, function_schema, opens_thought
from icrl.runtime.dialects.protocol import Reply
from icrl.runtime.dialects.segments import conversation, prompt_segments, separator, told
from icrl.runtime.tools.tool import ToolSpec
from icrl.tokenizer import Rendered, Tokenizer
from icrl.trajectory import Role, Segment
from icrl.types import Demonstration, Message, ToolCall, ToolResult

__all__ = ["HermesDialect"]

_TAGS = ("think", "tool_call", "tool_response", "tools")
_TAG = re.compile(r"</?(?:think|tool_call|tool_response)>")
_OPENING_THOUGHT = re.compile(r"(?:\s*<think>)?(?:(?!</?think>).)*</think>", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class HermesDialect:
    """Writes `<tool_call>{"name": …, "arguments": {…}}</tool_call>`, as Qwen2.5 and Qwen3 do.

    The model's own chat template declares the tools and writes calls and results. A turn ends with the template's end
    token, makes any number of calls, and answers when it makes none: the answer is its text after the thought.

    The system message holds the instruction, then the conversation's own system text. Demonstrations follow as earlier
    turns, then the conversation's turns as they are. A single question is the one-message case. Conversations share
    what stands before their own system text, and all up to the first turn where they have none. A template that drops
    the reasoning of earlier turns drops it from demonstrations too.

    Example:
        >>> call = '{"name": "search", "arguments": {"query": "code of Rikor"}}'
        >>> from icrl.tiny import BASE_DIR
        >>> from icrl.tokenizer import ChatTokenizer
        >>> tokenizer = ChatTokenizer.load(BASE_DIR)
        >>> ids = tokenizer.encode(f"<tool_call>{call}</tool_call>")
        >>> HermesDialect().parse(tokenizer, ids, tools=[], turn=0).calls[0].arguments
        {'query': 'code of Rikor'}
    """

    @property
    def name(self) -> str:
        """The name that settings use."""
        return "hermes"

    @property
    def marks_answers(self) -> bool:
        """Whatever is said outside of thoughts and calls is meant for the reader."""
        return False

    def stop(self, tools: Sequence[ToolSpec]) -> tuple[str, ...]:
        """Return no strings: the template's end token ends a turn."""
        return ()

    def prompt(
        self,
        tokenizer: Tokenizer,
        messages: Sequence[Message],
        *,
        tools: Sequence[ToolSpec],
        foreign: Sequence[ToolSpec] = (),
        demonstrations: Sequence[Demonstration] = (),
        instruction: str | None = None,
    ) -> tuple[Segment, ...]:
        """Render a conversation, up to the opening of the model's turn; see `Dialect.prompt`.

        Raises:
            ConfigError: The chat template writes no tools, or not in this dialect.
            DataError: The conversation ends in neither a user's nor a tool's message, or the template refuses it.
        """
        own, turns, since = conversation([_escaped(message) for message in messages])
        if tools or foreign or demonstrations or since:
            frame_of(tokenizer, 1)
        opening = f"{instruction}\n\n" if instruction and own else instruction or ""
        chat = [Message(role="system", content=opening + own)] if opening or own else []
        cuts = [(0, len(opening))] if own else []
        for demonstration in demonstrations:
            cuts.append((len(chat), 0))
            chat += _turns(demonstration)
        cuts += [(len(chat), 0)] + [(len(chat) + len(turns) - 1, 0)] * (len(turns) > 1)
        before: list[Role] = ["system", "history"] if own else ["system"]
        demos: list[Role] = ["demo"] * len(demonstrations)
        history: list[Role] = ["history"] if len(turns) > 1 else []
        declared = [*map(function_schema, tools), *(_foreign_schema(spec) for spec in foreign)]
        parts = tokenizer.render([*chat, *turns], tools=declared, cuts=cuts)
        asked = continuation(tokenizer, [*chat, *turns], since, tools=declared, query=(cuts[-1], parts[-1]))
        later: list[Role] = ["history"] * (len(asked) - 1)
        return prompt_segments(tokenizer, (*parts[:-1], *asked), [*before, *demos, *history, "query", *later])

    def parse(self, tokenizer: Tokenizer, ids: Sequence[int], *, tools: Sequence[ToolSpec], turn: int) -> Reply:
        """Read one turn; see `Dialect.parse`."""
        text = tokenizer.decode(ids)
        parser = self.parser(tokenizer, tools=tools)
        parser.feed(text)
        parser.close()
        calls = tuple(
            _call(block, f"{turn}.{index}", *tokenizer.locate(ids, block.start, block.end))
            for index, block in enumerate(parser.calls)
        )
        spoken = "".join(parser.spoken).strip()
        answer = spoken if spoken and not calls else None
        return Reply(text=text, calls=calls, answer=answer, thought="".join(parser.thoughts).strip())

    def parser(self, tokenizer: Tokenizer, *, tools: Sequence[ToolSpec]) -> HermesParser:
        """Return a parser for the text of one turn."""
        return HermesParser(opens_thought(tokenizer))

    def observe(
        self,
        tokenizer: Tokenizer,
        results: Sequence[ToolResult],
        *,
        sampled: Sequence[int],
        turn: int,
        max_tokens: int,
    ) -> tuple[Segment, ...]:
        """Render results as the template writes tool messages, and open the next turn; see `Dialect.observe`.

        Raises:
            ConfigError: The chat template writes no tools, or not in this dialect.
        """
        frame = frame_of(tokenizer, len(results))
        observed = tuple(
            told(tokenizer, result, turn, wrap=partial(_between, *around), tags=_TAGS, max_tokens=max_tokens)
            for result, around in zip(results, frame.around, strict=True)
        )
        ended = bool(sampled) and sampled[-1] == frame.end.id
        before = frame.before if ended else Rendered((frame.end,)) + frame.before
        return separator(tokenizer, before, turn) + observed + separator(tokenizer, frame.after, turn)

    def well_formed(self, segments: Sequence[Segment]) -> bool:
        """Say whether a response is turns of sound calls, each followed by as many results, then an answer.

        A thought may open each turn; outside of it and of calls there are no tags.
        """
        turns = [segment for segment in segments if segment.source == "policy"]
        calls = [call for segment in turns for call in segment.calls]
        results = sum(segment.result is not None for segment in segments)
        if len(turns) < 2 or turns[-1].calls or not all(segment.calls for segment in turns[:-1]):
            return False
        if len(calls) != results or any(call.error is not None for call in calls):
            return False
        spoken = [_spoken(segment.text) for segment in turns]
        return bool(spoken[-1].strip()) and not any(map(_TAG.search, spoken))


def _between(before: Rendered, after: Rendered, text: str) -> Rendered:
    return before + text + after


def _escaped(message: Message) -> Message:
    return replace(message, content=escape(message.content, _TAGS)) if message.role == "tool" else message


def _foreign_schema(spec: ToolSpec) -> dict[str, Any]:
    schema: dict[str, Any] = escape_all(function_schema(spec), _TAGS)
    return schema


def _turns(demonstration: Demonstration) -> Iterator[Message]:
    """Write a worked example as earlier turns."""
    yield Message(role="user", content=demonstration.query)
    for index, step in enumerate(demonstration.steps):
        call = ToolCall(name=step.tool, arguments=step.arguments, id=str(index))
        yield Message(role="assistant", content=_thought(step.thought), tool_calls=(call,))
        yield Message(role="tool", content=escape(step.result, _TAGS), tool_call_id=call.id)
    yield Message(role="assistant", content=_thought(demonstration.thought) + demonstration.answer)


def _thought(text: str) -> str:
    return text and f"<think>\n{text}\n</think>\n\n"


def _call(block: CallBlock, id: str, start: int, end: int) -> ToolCall:  # noqa: A002
    name = ""
    try:
        if not block.closed:
            raise DataError("<tool_call> was never closed")
        content = read_object(block.body, "the body of <tool_call>")
        name = _name(content)
        return ToolCall(name=name, arguments=_arguments(content, name), id=id, start=start, end=end)
    except DataError as error:
        return ToolCall(name=name, id=id, start=start, end=end, error=str(error))


def _name(content: Mapping[str, Any]) -> str:
    name = content.get("name")
    if not isinstance(name, str) or not name:
        raise DataError('the body of <tool_call> needs a "name", a string')
    return name


def _arguments(content: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return a call's arguments, which some models write as a string of JSON."""
    arguments = content.get("arguments", {})
    if isinstance(arguments, str):
        return read_object(arguments, f'"arguments" of {name}')
    if not isinstance(arguments, dict):
        raise DataError(f'"arguments" of {name} must be a JSON object, not {type(arguments).__name__}')
    return arguments


def _spoken(text: str) -> str:
    """Return a turn's text outside its thought and its calls."""
    opening = _OPENING_THOUGHT.match(text)
    parser = HermesParser()
    parser.feed(text[opening.end() :] if opening else text)
    parser.close()
    return "".join(parser.spoken) + "<think>" * bool(parser.thoughts)
