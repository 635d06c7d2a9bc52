"""From the events of a run to what a reader is told: thoughts, words of the answer, calls, results.

    events ──Narrator.feed──> Heard, Heard, …

Both protocols and the page read this one narration, streamed or not, so that they cannot disagree. Whether plain text
is meant for the reader is the dialect's to say: where answers are marked (`<answer>`), text outside of any mark is
only shown if the turn holds neither a marked answer nor a call; otherwise it is reasoning.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

from icrl.events import CallFinished, CallStarted, Event, RunStopped, TextDelta, TurnFinished
from icrl.runtime.dialect import Dialect, Parser, Piece
from icrl.runtime.tools.tool import ToolSpec
from icrl.serve.spans import Label, Span, place
from icrl.tokenizer import Tokenizer
from icrl.trajectory import Segment, StopReason
from icrl.types import ToolCall, ToolResult

__all__ = ["GAPS", "Heard", "HeardKind", "Narrator"]

HeardKind = Literal["thought", "said", "call", "result", "turn", "handed_over", "stopped"]
"""What a reader hears: reasoning, the answer's words, a call that begins, its result, the end of a turn, a call that
the client has to answer, the end."""

GAPS: dict[Label, str] = {"thought": "\n", "said": "\n\n"}
"""What stands between thoughts, and between the words of two turns."""


class Heard(NamedTuple):
    """One thing to tell."""

    kind: HeardKind
    """What it is."""
    text: str = ""
    """New characters of a thought or of the answer."""
    turn: int = 0
    """Index of the engine call."""
    call: ToolCall | None = None
    """The call that begins, was answered, or is handed over."""
    result: ToolResult | None = None
    """The answer to a call."""
    event: TurnFinished | RunStopped | None = None
    """The event behind the end of a turn or of the run."""


class Narrator:
    """Labels what happens in one run for a reader.

    White space around the answer is left out, and held back while it might be at its end. So the words of the turn
    that answered, joined together, are exactly the trajectory's answer; words of earlier turns stand before them.

    Args:
        dialect: Labels text.
        tokenizer: The run's.
        tools: What may be called.
    """

    def __init__(self, dialect: Dialect, tokenizer: Tokenizer, tools: tuple[ToolSpec, ...]) -> None:
        self._dialect = dialect
        self._tokenizer = tokenizer
        self._tools = tools
        self._parser: Parser | None = None
        self._text: list[str] = []
        self._told: list[tuple[Label | None, Piece]] = []
        self._aside: list[int] = []
        self._turn = 0
        self._calls: dict[str, ToolCall] = {}
        self._texts: dict[Label, _Trimmed] = {"thought": _Trimmed(), "said": _Trimmed()}
        self.spans: dict[int, tuple[Span, ...]] = {}
        """Where thoughts and words stand in the text of each finished turn."""

    def feed(self, event: Event) -> list[Heard]:
        """Return what one event means to a reader; often nothing."""
        match event:
            case TextDelta():
                self._turn = event.turn
                return list(self._read(event.text))
            case TurnFinished():
                self._turn = event.turn.index
                self._calls = {call.id: call for call in event.segment.calls if call.error is None}
                return list(self._turn_over(event))
            case CallStarted():
                self._calls.pop(event.call.id, None)
                return [Heard("call", call=event.call, turn=self._turn)]
            case CallFinished():
                return [Heard("result", call=event.call, result=event.result, turn=self._turn)]
            case RunStopped():
                handed_over = self._calls.values() if event.stop_reason is StopReason.CLIENT_CALL else ()
                told = [Heard("handed_over", call=call, turn=self._turn) for call in handed_over]
                return [*told, Heard("stopped", event=event, turn=self._turn)]
            case _:
                return []

    def _open(self) -> Parser:
        if self._parser is None:
            self._parser = self._dialect.parser(self._tokenizer, tools=self._tools)
        return self._parser

    def _read(self, text: str) -> Iterator[Heard]:
        self._text.append(text)
        return self._listen(self._open().feed(text))

    def _turn_over(self, event: TurnFinished) -> Iterator[Heard]:
        # An engine may tell nothing while it samples, and half a character is only told once nothing can follow.
        heard = "".join(self._text)
        if event.segment.text.startswith(heard):
            yield from self._read(event.segment.text[len(heard) :])
        yield from self._listen(self._open().close())
        self._parser = None
        self._text.clear()
        # What follows the mark that ended a turn is the rest of a token, which nobody meant.
        if self._aside and not (self._has_marks and event.turn.finish_reason == "stop"):
            yield from self._settle("thought" if self._is_marked(event.segment) else "said")
        self._aside.clear()
        self.spans[self._turn] = tuple(place(event.segment.text, self._told))
        self._told.clear()
        for label, text in self._texts.items():
            text.pause(GAPS[label])
        yield Heard("turn", turn=self._turn, event=event)

    @property
    def _has_marks(self) -> bool:
        return any(piece.kind in ("call", "answer") for _, piece in self._told)

    def _is_marked(self, segment: Segment) -> bool:
        """Whether a turn holds a call or a marked answer, be they malformed or empty."""
        reply = self._dialect.parse(self._tokenizer, segment.ids, tools=self._tools, turn=segment.turn)
        return self._has_marks or bool(reply.calls) or reply.answer is not None

    def _listen(self, pieces: list[Piece]) -> Iterator[Heard]:
        for piece in pieces:
            if piece.kind == "text" and self._dialect.marks_answers:
                self._aside.append(len(self._told))
                self._told.append((None, piece))
                continue
            if self._aside and piece.kind in ("call", "answer"):  # so what was said before it is no answer
                yield from self._settle("thought")
            label: Label | None = None if piece.kind == "call" else "thought" if piece.kind == "thought" else "said"
            self._told.append((label, piece))
            if label is not None and (heard := self._say(label, piece)) is not None:
                yield heard

    def _settle(self, label: Label) -> Iterator[Heard]:
        """Tell the text that stood outside of all marks."""
        aside, self._aside = self._aside, []
        if not any(self._told[index][1].text.strip() for index in aside):
            return
        for index in aside:
            piece = self._told[index][1]
            self._told[index] = (label, piece)
            if (heard := self._say(label, piece)) is not None:
                yield heard

    def _say(self, label: Label, piece: Piece) -> Heard | None:
        text = self._texts[label]
        if label == "thought" or piece.kind == "answer":  # plain text goes on behind a call as if nothing was there
            text.enter(piece.block, GAPS[label])
        told = text.feed(piece.text)
        return Heard(label, told, self._turn) if told else None


class _Trimmed:
    """Text without the white space around its parts, which is only known to be around one at its end."""

    def __init__(self) -> None:
        self._space = ""
        self._within = False
        self._begun = False
        self._block: int | None = None

    def feed(self, text: str) -> str:
        """Take more text and return what certainly belongs to the whole."""
        text = self._space + (text if self._within else text.lstrip())
        told = text.rstrip()
        if told:
            self._begun = self._within = True
        self._space = text[len(told) :]
        return told

    def enter(self, block: int, gap: str) -> None:
        """Put a gap before a new block."""
        if block != self._block:
            self.pause(gap)
            self._block = block

    def pause(self, gap: str) -> None:
        """Put a gap before what follows, in place of the white space that was there."""
        self._space, self._within, self._block = gap if self._begun else "", False, None
