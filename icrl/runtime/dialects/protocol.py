"""What the runtime needs from a way of writing tool use down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from icrl.runtime.tools.tool import ToolSpec
from icrl.tokenizer import Tokenizer
from icrl.trajectory import Segment
from icrl.types import Demonstration, Message, ToolCall, ToolResult

__all__ = ["Dialect", "Parser", "Piece", "PieceKind", "Reply"]

PieceKind = Literal["thought", "text", "call", "answer"]
"""What a stretch of a turn is."""


class Piece(NamedTuple):
    """A stretch of a turn's text, without the tags around it."""

    kind: PieceKind
    """What it is."""
    text: str
    """The new characters."""
    block: int
    """Pieces of one block belong together: one thought, one call, …"""
    name: str = ""
    """The tool that a call names, where its tag does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What one turn says."""

    text: str
    """The whole turn, tags included and control tokens left out."""
    calls: tuple[ToolCall, ...] = ()
    """Its calls; one that cannot be parsed carries an `error` for the model to read."""
    answer: str | None = None
    """The final answer; `None` where the turn calls a tool or gives none."""
    thought: str = ""
    """The reasoning in it."""


class Parser(Protocol):
    """Labels the text of one turn while it is being sampled.

    However the text is divided, the pieces are the same once those of one block are joined, no piece ends in half a
    tag, and all agree with `Dialect.parse`. A tag that closes nothing is text.
    """

    def feed(self, text: str) -> list[Piece]:
        """Take more text and return the pieces that are certain now."""
        ...

    def close(self) -> list[Piece]:
        """Return the pieces that were held back; the turn is over."""
        ...


class Dialect(Protocol):
    """A way of writing tool use down; stateless, so that training, evaluation and serving share one."""

    @property
    def name(self) -> str:
        """The name that settings use."""
        ...

    @property
    def marks_answers(self) -> bool:
        """Whether answers are marked, so that text outside of any mark is not meant for the reader."""
        ...

    def stop(self, tools: Sequence[ToolSpec]) -> tuple[str, ...]:
        """Return the strings that end a turn."""
        ...

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
        """Render a conversation, up to the opening of the model's turn.

        A conversation that ends in the results of calls goes on behind them, as a run would have in which the runtime
        made these calls.

        The leading `system` and `demo` segments are the same tokens for every conversation with the same tools,
        demonstrations and instruction. Each segment is encoded by itself.

        Args:
            tokenizer: Renders and encodes.
            messages: The conversation; it ends in a user message, or in tool messages. The tool messages that follow
                an assistant's answer its calls, in order.
            tools: What may be called.
            foreign: What may be called besides. These tools came with the conversation: no model was trained on them,
                so that they have to be explained, and their words are escaped as all foreign text.
            demonstrations: Worked examples to show.
            instruction: Replaces the dialect's own.

        Raises:
            ConfigError: The tools or the chat template do not fit the dialect.
            DataError: The conversation ends in neither, or cannot be rendered.
        """
        ...

    def parse(self, tokenizer: Tokenizer, ids: Sequence[int], *, tools: Sequence[ToolSpec], turn: int) -> Reply:
        """Read one turn.

        Args:
            tokenizer: Decodes.
            ids: What the model sampled.
            tools: What may be called.
            turn: Index of the turn; calls get the ids `"<turn>.<index>"`.
        """
        ...

    def parser(self, tokenizer: Tokenizer, *, tools: Sequence[ToolSpec]) -> Parser:
        """Return a parser for the text of one turn."""
        ...

    def observe(
        self,
        tokenizer: Tokenizer,
        results: Sequence[ToolResult],
        *,
        sampled: Sequence[int],
        turn: int,
        max_tokens: int,
    ) -> tuple[Segment, ...]:
        """Render the answers to a turn's calls as tokens to append.

        Args:
            tokenizer: Renders and encodes.
            results: One for each call of the turn, in order.
            sampled: What the model sampled in that turn. Separators depend on whether it ended as the template wants.
            turn: Index of the turn.
            max_tokens: Tokens of one result; a longer one is cut in the middle, before it is wrapped.
        """
        ...

    def well_formed(self, segments: Sequence[Segment]) -> bool:
        """Say whether a whole response has the dialect's form: at least one call, then an answer, and nothing else.

        Args:
            segments: The response, `Trajectory.response`.
        """
        ...
