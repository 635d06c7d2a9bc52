"""From the events of a run to what a reader is told: thoughts, words of the answer, calls, results.

    events ──Narrator.feed──> Heard, Heard, …

Both protocols and the page read this one narration, streamed or not, so that they cannot disagree. Whether plain text
is meant for the reader is the dialect's to say: where answers are marked (`<answer>`), text outside of any mark is
only shown if the run ends without a marked answer.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from icrl.events import CallFinished, CallStarted, Event, RunStopped, TextDelta, TurnFinished
from icrl.runtime.dialect import Dialect, Parser, Piece
from icrl.runtime.tools.tool import ToolSpec
from icrl.tokenizer import Tokenizer
from icrl.types import ToolCall, ToolResult

__all__ = ["Heard", "HeardKind", "Narrator"]

HeardKind = Literal["thought", "said", "call", "result", "turn", "stopped"]
"""What a reader hears: reasoning, the answer's words, a call that begins, its result, the end of a turn, the end."""


class Heard(NamedTuple):
    """One thing to tell."""

    kind: HeardKind
    """What it is."""
    text: str = ""
    """New characters of a thought or of the answer."""
    turn: int = 0
    """Index of the engine call."""
    call: ToolCall | None = None
    """The call that begins or was answered."""
    result: ToolResult | None = None
    """The answer to a call."""
    event: TurnFinished | RunStopped | None = None
    """The event behind the end of a turn or of the run."""


class Narrator:
    """Labels what happens in one run for a reader.

    Leading white space of the answer is left out, and white space at its end is held back until more follows, so
    that the streamed words joined together are exactly the trajectory's answer.

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
        self._aside: list[str] = []
        self._thoughts = _Trimmed()
        self._words = _Trimmed()

    def feed(self, event: Event) -> list[Heard]:
        """Return what one event means to a reader; often nothing."""
        match event:
            case TextDelta():
                return self._pieces(self._open().feed(event.text), event.turn)
            case TurnFinished():
                return self._turn_over(event)
            case CallStarted():
                return [Heard("call", call=event.call)]
            case CallFinished():
                return [Heard("result", call=event.call, result=event.result)]
            case RunStopped():
                return [Heard("stopped", event=event)]
            case _:
                return []

    def _open(self) -> Parser:
        if self._parser is None:
            self._parser = self._dialect.parser(self._tokenizer, tools=self._tools)
        return self._parser

    def _turn_over(self, event: TurnFinished) -> list[Heard]:
        turn = event.turn.index
        heard = self._pieces(self._open().close(), turn)
        self._parser = None
        aside = "".join(self._aside)
        self._aside.clear()
        if aside.strip():
            shown = bool(event.segment.calls) or self._words.has_begun
            heard += self._tell("thought" if shown else "said", aside, turn)
        self._thoughts.pause("\n")
        self._words.pause("\n\n")
        return [*heard, Heard("turn", turn=turn, event=event)]

    def _pieces(self, pieces: list[Piece], turn: int) -> list[Heard]:
        heard: list[Heard] = []
        for piece in pieces:
            if piece.kind == "thought":
                heard += self._tell("thought", piece.text, turn)
            elif piece.kind == "answer" or (piece.kind == "text" and not self._dialect.marks_answers):
                heard += self._tell("said", piece.text, turn)
            elif piece.kind == "text":
                self._aside.append(piece.text)
        return heard

    def _tell(self, kind: HeardKind, text: str, turn: int) -> list[Heard]:
        told = (self._thoughts if kind == "thought" else self._words).feed(text)
        return [Heard(kind, told, turn)] if told else []


class _Trimmed:
    """Text without the white space around the whole, which is only known to be around it at the end."""

    def __init__(self) -> None:
        self._space = ""
        self._within = False
        self.has_begun = False
        """Whether anything was let through."""

    def feed(self, text: str) -> str:
        """Take more text and return what certainly belongs to the whole."""
        text = self._space + (text if self._within else text.lstrip())
        told = text.rstrip()
        if told.strip():
            self.has_begun = self._within = True
        self._space = text[len(told) :]
        return told

    def pause(self, gap: str) -> None:
        """Put a gap before what follows, in place of the white space that was there."""
        self._space, self._within = gap if self.has_begun else "", False
