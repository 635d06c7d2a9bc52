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
        self._turn = 0
        self._aside: list[str] = []
        self._space = ""
        self._has_said = False

    def feed(self, event: Event) -> list[Heard]:
        """Return what one event means to a reader; often nothing."""
        match event:
            case TextDelta():
                return self._pieces(self._open().feed(event.text), event.turn)
            case TurnFinished():
                return self._turn_over(event)
            case CallStarted():
                return [Heard("call", turn=self._turn, call=event.call)]
            case CallFinished():
                return [Heard("result", turn=self._turn, call=event.call, result=event.result)]
            case RunStopped():
                return [Heard("stopped", turn=self._turn, event=event)]
            case _:
                return []

    def _open(self) -> Parser:
        if self._parser is None:
            self._parser = self._dialect.parser(self._tokenizer, tools=self._tools)
        return self._parser

    def _turn_over(self, event: TurnFinished) -> list[Heard]:
        self._turn = event.turn.index
        heard = self._pieces(self._open().close(), self._turn)
        self._parser = None
        marked = self._has_said or event.segment.calls
        aside = "".join(self._aside)
        self._aside.clear()
        if aside.strip():
            heard += [Heard("thought", aside, self._turn)] if marked else self._say(aside)
        self._space = ""
        return [*heard, Heard("turn", turn=self._turn, event=event)]

    def _pieces(self, pieces: list[Piece], turn: int) -> list[Heard]:
        heard: list[Heard] = []
        for piece in pieces:
            if piece.kind == "thought":
                heard.append(Heard("thought", piece.text, turn))
            elif piece.kind == "answer" or (piece.kind == "text" and not self._dialect.marks_answers):
                heard += self._say(piece.text)
            elif piece.kind == "text":
                self._aside.append(piece.text)
        return heard

    def _say(self, text: str) -> list[Heard]:
        """Say words, without the white space around the whole."""
        text = self._space + text
        if not self._has_said:
            text = text.lstrip()
        said = text.rstrip()
        self._space = text[len(said) :]
        if not said:
            return []
        self._has_said = True
        return [Heard("said", said, self._turn)]
