"""The dialect of models that write fenced programs and read what they print."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from icrl.runtime.dialects.arguments import text_parameter
from icrl.runtime.dialects.fence_grammar import CLOSING_FENCES
from icrl.runtime.dialects.fence_parser import FenceParser, Program
from icrl.runtime.dialects.fence_text import (
    TAGS,
    Form,
    assistant_text,
    example,
    fenceless,
    instruction_text,
    output,
    program_text,
    runner,
    unboxed,
)
from icrl.runtime.dialects.foreign import escape, shown
from icrl.runtime.dialects.inline import inline_prompt, user_turn
from icrl.runtime.dialects.protocol import Reply
from icrl.runtime.dialects.segments import observation, separator
from icrl.runtime.tools.tool import ToolSpec
from icrl.tokenizer import Rendered, Tokenizer
from icrl.trajectory import Segment
from icrl.types import Demonstration, Message, ToolCall, ToolResult

__all__ = ["FenceDialect"]

_OWN = re.compile(rf"</?(?:{'|'.join(TAGS)})>|```")
_STRAY = (
    "nothing was run: a program begins with a line of three backticks and the word python, and ends with a line of "
    "three backticks; an answer stands between answer tags"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FenceDialect:
    r"""Writes prose, programs in fences or `<code>`, results in `<interpreter>`, and `<answer>` or `\boxed{}`.

    A turn ends at the first line that only holds a fence, at `</code>` or at `</answer>`, so it runs at most one
    program. Programs go to the only tool, whatever its name, which must take one string. An answer in a box needs no
    tag, but only an end token ends its turn.

    Prompts are laid out as in the `xml` dialect: the first user message holds the instruction, the demonstrations, the
    conversation's own system text and its first question.

    Example:
        >>> from icrl.testing import ByteTokenizer
        >>> schema = {"type": "object", "required": ["code"], "properties": {"code": {"type": "string"}}}
        >>> spec = ToolSpec(name="python", description="Run code.", parameters=schema)
        >>> tokenizer = ByteTokenizer()
        >>> ids = tokenizer.encode("I compute it.\n```python\nprint(6 * 7)\n```\n")
        >>> FenceDialect().parse(tokenizer, ids, tools=[spec], turn=0).calls[0].arguments
        {'code': 'print(6 * 7)'}
    """

    instruction: str = "Answer the question. Write the answer between <answer> and </answer>. {tools}"
    """Opens every prompt. `{tools}` becomes how to run a program, and what the tool says of itself."""
    query_prefix: str = "Question: "
    """Stands before every user message, in demonstrations too."""
    results: Form = "interpreter"
    """How results are wrapped: `interpreter` in tags, `output` in a block of that language."""

    @property
    def name(self) -> str:
        """The name that settings use."""
        return "fence"

    @property
    def marks_answers(self) -> bool:
        """Answers stand in a tag or in a box."""
        return True

    def stop(self, tools: Sequence[ToolSpec]) -> tuple[str, ...]:
        """Return the closing fence on its line, and the closing tags.

        An opening fence names its language, so that these strings do not appear in it.

        Raises:
            ConfigError: There are several tools, or the one does not take one string.
        """
        return (*CLOSING_FENCES, "</code>", "</answer>") if runner(tools) else ("</answer>",)

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
            ConfigError: There are several tools, or the one does not take one string.
            DataError: A demonstration or an earlier turn calls anything else; the conversation ends in neither a
                user's nor a tool's message, or the template refuses it.
        """
        tool = runner((*tools, *(replace(spec, description=escape(spec.description, TAGS)) for spec in foreign)))
        return inline_prompt(
            tokenizer,
            messages,
            opening=instruction_text(self.instruction if instruction is None else instruction, tool, self.results),
            examples=[example(shot, tool, self.results, self.query_prefix) for shot in demonstrations],
            query_prefix=self.query_prefix,
            write=lambda message: assistant_text(message, tool, self.results),
        )

    def parse(self, tokenizer: Tokenizer, ids: Sequence[int], *, tools: Sequence[ToolSpec], turn: int) -> Reply:
        """Read one turn; see `Dialect.parse`.

        A stop string may end a turn although nothing was called and nothing answered, at a block of another language
        or at a bare fence. Then there is a call with an error, so that the model is told and can go on.
        """
        text, tool, id_ = tokenizer.decode(ids), runner(tools), f"{turn}.0"
        parser = _read(text, None if tool is None else tool.name)
        thought, answer = "".join(parser.thoughts).strip(), _answer(parser)
        if tool is not None and parser.program is not None:
            start, end = tokenizer.locate(ids, parser.program.start, parser.program.end)
            return Reply(text=text, calls=(_call(parser.program, tool, id_, start, end),), thought=thought)
        if tool is not None and answer is None and (at := self._stopped_at(tokenizer, ids, text, tools)) is not None:
            start, end = tokenizer.locate(ids, at, len(text))
            stray = ToolCall(name=tool.name, id=id_, start=start, end=end, error=_STRAY)
            return Reply(text=text, calls=(stray,), thought=thought)
        return Reply(text=text, answer=answer, thought=thought)

    def _stopped_at(self, tokenizer: Tokenizer, ids: Sequence[int], text: str, tools: Sequence[ToolSpec]) -> int | None:
        """Return where the stop string begins that the last token completed, if it did."""
        before = tokenizer.decode(ids[:-1])
        return max((text.find(stop) for stop in self.stop(tools) if stop in text and stop not in before), default=None)

    def parser(self, tokenizer: Tokenizer, *, tools: Sequence[ToolSpec]) -> FenceParser:
        """Return a parser for the text of one turn."""
        tool = runner(tools)
        return FenceParser(None if tool is None else tool.name)

    def observe(
        self,
        tokenizer: Tokenizer,
        results: Sequence[ToolResult],
        *,
        sampled: Sequence[int],
        turn: int,
        max_tokens: int,
    ) -> tuple[Segment, ...]:
        """Render results so that they continue the model's turn; see `Dialect.observe`.

        A `<code>` that the closing fence in it has cut off is closed first.
        """
        cut = [shown(tokenizer, _without_fences(r), tags=TAGS, max_tokens=max_tokens) for r in results]
        wrapped = [output(r.text, self.results) for r in cut]
        if ended := bool(sampled) and sampled[-1] in tokenizer.eos_ids:
            wrapped = [text.strip() for text in wrapped]
        text = tokenizer.decode(sampled)
        line = "" if ended or text.endswith("\n") else "\n"
        closing = f"{line}</code>\n" if not ended and _read(text, "?").open_code else ""
        before = separator(tokenizer, Rendered() + closing, turn)
        heads = ["" if closing else line, *[""] * len(wrapped)]
        told = tuple(
            observation(tokenizer, Rendered() + head + text, r, turn)
            for head, text, r in zip(heads, wrapped, cut, strict=False)
        )
        return user_turn(tokenizer, told, turn) if ended else before + told

    def well_formed(self, segments: Sequence[Segment]) -> bool:
        """Say whether a response is (prose, program, result) once or more, then prose and an answer.

        Prose may hold one thought or more, and none of the dialect's own marks. Nothing follows a program in its turn,
        or an answer between tags.
        """
        turns = [segment for segment in segments if segment.source == "policy"]
        results = sum(segment.result is not None for segment in segments)
        if len(turns) < 2 or len(turns) != results + 1 or turns[-1].calls:
            return False
        return all(map(_is_call_turn, turns[:-1])) and _is_answer_turn(turns[-1])


def _read(text: str, tool: str | None) -> FenceParser:
    parser = FenceParser(tool)
    parser.feed(text)
    parser.close()
    return parser


def _answer(parser: FenceParser) -> str | None:
    found = parser.boxed if parser.answer is None else unboxed(parser.answer)
    return None if found is None else found.strip()


def _call(program: Program, tool: ToolSpec, id: str, start: int, end: int) -> ToolCall:  # noqa: A002
    code, parameter = program_text(program), text_parameter(tool)
    error = None
    if not program.closed:
        ending = "a closing code tag" if program.mark == "<code>" else "a line of three backticks"
        error = f"the program was never closed; end it with {ending}"
    elif not code.strip():
        error = "the program is empty; write it between its marks"
    arguments = {} if error is not None or parameter is None else {parameter: code}
    return ToolCall(name=tool.name, arguments=arguments, id=id, start=start, end=end, error=error)


def _without_fences(result: ToolResult) -> ToolResult:
    return replace(result, text=fenceless(result.text)) if "```" in result.text else result


def _is_call_turn(segment: Segment) -> bool:
    if len(segment.calls) != 1 or segment.calls[0].error is not None:
        return False
    parser = _read(segment.text, segment.calls[0].name)
    return parser.program is not None and not parser.program.in_thought and _is_plain(parser)


def _is_answer_turn(segment: Segment) -> bool:
    parser = _read(segment.text, "?")
    return bool(_answer(parser)) and parser.program is None and _is_plain(parser)


def _is_plain(parser: FenceParser) -> bool:
    """Say whether prose and thoughts hold none of the dialect's marks, and nothing follows what decided the turn."""
    return not "".join(parser.rest).strip() and _OWN.search("".join(parser.prose + parser.thoughts)) is None
