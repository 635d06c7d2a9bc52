"""The tagged dialect of the paper: think, one tag a tool, information, answer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from icrl.errors import DataError
from icrl.runtime.dialects.foreign import escape
from icrl.runtime.dialects.inline import inline_prompt, user_turn
from icrl.runtime.dialects.protocol import Reply
from icrl.runtime.dialects.segments import told
from icrl.runtime.dialects.xml_parser import Block, XmlParser, grammar
from icrl.runtime.dialects.xml_text import (
    assistant_text,
    example,
    information,
    instruction_text,
    read_arguments,
    reserved_tags,
)
from icrl.runtime.tools.tool import ToolSpec
from icrl.tokenizer import Rendered, Tokenizer
from icrl.trajectory import Segment
from icrl.types import Demonstration, Message, ToolCall, ToolResult

__all__ = ["XmlDialect"]

_ANY_TAG = r"</?[A-Za-z][\w-]*>"
_THOUGHT = rf"\s*(?:<think>(?:(?!{_ANY_TAG}).)*</think>\s*)?"
_LAST_TURN = re.compile(rf"{_THOUGHT}<answer>(?=\s*[^\s<])(?:(?!{_ANY_TAG}).)+</answer>\s*", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class XmlDialect:
    """Writes `<think> … </think>`, `<tool> … </tool>`, `<information> … </information>` and `<answer> … </answer>`.

    A turn ends at the first closing tag of a tool or of `answer`, so it makes at most one call. A tool with exactly
    one required parameter, a string, takes the bare text between its tags; any other takes a JSON object.

    The first user message holds the instruction, the demonstrations, the conversation's own system text and its first
    question, in this order. Earlier turns follow as turns of the chat template; an assistant's text, calls and results
    are joined into one. A single question is the one-message case.

    A model that ended its turn with an end token instead of a call is answered in a new user turn.

    Example:
        >>> from icrl.tiny import BASE_DIR
        >>> from icrl.tokenizer import ChatTokenizer
        >>> spec = ToolSpec(name="search", description="Search.", parameters={"type": "object", "required": ["query"],
        ...                 "properties": {"query": {"type": "string"}}})
        >>> tokenizer, dialect = ChatTokenizer.load(BASE_DIR), XmlDialect()
        >>> ids = tokenizer.encode("<search> code of Rikor </search>")
        >>> dialect.parse(tokenizer, ids, tools=[spec], turn=0).calls[0].arguments
        {'query': 'code of Rikor'}
    """

    instruction: str = "Answer the question. You can {tags}."
    """Opens every prompt. `{tags}` becomes the list of tags, `{tools}` a line on each tool."""
    query_prefix: str = "Question: "
    """Stands before every user message, in demonstrations too."""

    @property
    def name(self) -> str:
        """The name that settings use."""
        return "xml"

    @property
    def marks_answers(self) -> bool:
        """Answers stand in a tag of their own."""
        return True

    def stop(self, tools: Sequence[ToolSpec]) -> tuple[str, ...]:
        """Return the closing tags of the tools and of `answer`.

        Raises:
            ConfigError: A tool has the name of one of the dialect's own tags.
        """
        names = tuple(spec.name for spec in tools)
        grammar(names)
        return tuple(f"</{name}>" for name in (*names, "answer"))

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
            ConfigError: A tool has the name of one of the dialect's own tags.
            DataError: The conversation ends in neither a user's nor a tool's message, or the template refuses it.
        """
        tools, own = (*tools, *foreign), tools
        grammar(tuple(spec.name for spec in tools))
        opening = instruction_text(self.instruction if instruction is None else instruction, own, foreign)
        return inline_prompt(
            tokenizer,
            messages,
            opening=opening,
            examples=[example(demonstration, tools, self.query_prefix) for demonstration in demonstrations],
            query_prefix=self.query_prefix,
            write=lambda message: (
                assistant_text(message, tools) if message.role == "assistant" else _told(message, tools)
            ),
        )

    def parse(self, tokenizer: Tokenizer, ids: Sequence[int], *, tools: Sequence[ToolSpec], turn: int) -> Reply:
        """Read one turn: the first closing tag decides between a call and an answer; see `Dialect.parse`."""
        text = tokenizer.decode(ids)
        parser = self.parser(tokenizer, tools=tools)
        parser.feed(text)
        parser.close()
        thought = "\n".join(thought.strip() for thought in parser.thoughts)
        if parser.answer is not None:
            return Reply(text=text, answer=parser.answer.strip(), thought=thought)
        if parser.call is None:
            return Reply(text=text, thought=thought)
        start, end = tokenizer.locate(ids, parser.call.start, parser.call.end)
        call = _call(parser.call, tools, f"{turn}.0", start, end)
        return Reply(text=text, calls=(call,), thought=thought)

    def parser(self, tokenizer: Tokenizer, *, tools: Sequence[ToolSpec]) -> XmlParser:
        """Return a parser for the text of one turn."""
        return XmlParser(grammar(tuple(spec.name for spec in tools)))

    def observe(
        self,
        tokenizer: Tokenizer,
        results: Sequence[ToolResult],
        *,
        sampled: Sequence[int],
        turn: int,
        max_tokens: int,
    ) -> tuple[Segment, ...]:
        """Render results as information that continues the model's turn; see `Dialect.observe`."""
        tags = reserved_tags(result.name for result in results)
        ended = bool(sampled) and sampled[-1] in tokenizer.eos_ids
        wrap = _information_alone if ended else _information
        observed = tuple(told(tokenizer, r, turn, wrap=wrap, tags=tags, max_tokens=max_tokens) for r in results)
        return user_turn(tokenizer, observed, turn) if ended else observed

    def well_formed(self, segments: Sequence[Segment]) -> bool:
        """Say whether a response is (thought, call, information) once or more, then thought, answer.

        Thoughts are optional; thoughts and answers hold nothing that looks like a tag.
        """
        turns = [segment for segment in segments if segment.source == "policy"]
        results = sum(segment.result is not None for segment in segments)
        if len(turns) < 2 or len(turns) != results + 1 or turns[-1].calls:
            return False
        return all(map(_is_call_turn, turns[:-1])) and _LAST_TURN.fullmatch(turns[-1].text) is not None


def _information(text: str) -> Rendered:
    return Rendered() + information(text)


def _information_alone(text: str) -> Rendered:
    return Rendered() + information(text).strip()


def _told(message: Message, tools: Sequence[ToolSpec]) -> str:
    return information(escape(message.content, reserved_tags(spec.name for spec in tools)))


def _call(block: Block, tools: Sequence[ToolSpec], id: str, start: int, end: int) -> ToolCall:  # noqa: A002
    if block.error is not None:
        return ToolCall(name=block.name, id=id, start=start, end=end, error=block.error)
    try:
        arguments = read_arguments(next(spec for spec in tools if spec.name == block.name), block.body)
    except DataError as error:
        return ToolCall(name=block.name, id=id, start=start, end=end, error=str(error))
    return ToolCall(name=block.name, arguments=arguments, id=id, start=start, end=end)


def _is_call_turn(segment: Segment) -> bool:
    call = segment.calls[0] if len(segment.calls) == 1 else None
    return call is not None and call.error is None and _call_turn(call.name).fullmatch(segment.text) is not None


@lru_cache(maxsize=128)
def _call_turn(name: str) -> re.Pattern[str]:
    own = f"</?(?:think|answer|information|{name})>"
    return re.compile(rf"{_THOUGHT}<{name}>(?:(?!{own}).)+</{name}>\s*", re.DOTALL)
