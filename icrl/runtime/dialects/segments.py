"""Making prompt and observation segments out of rendered text."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import lru_cache
from typing import NamedTuple

from icrl.errors import DataError
from icrl.runtime.dialects.foreign import escaped, shown
from icrl.tokenizer import Rendered, Special, Tokenizer
from icrl.trajectory import Role, Segment
from icrl.types import Message, ToolResult

__all__ = ["Conversation", "after_turn", "conversation", "observation", "prompt_segments", "separator", "told"]

_CHARACTERS_THAT_MAY_FIT = 8
"""Per token; longer texts are cut, as good as always."""


class Conversation(NamedTuple):
    """The parts of a conversation."""

    system: str
    """Its system text."""
    asked: tuple[Message, ...]
    """Its turns up to the last user message."""
    since: tuple[Message, ...]
    """Calls and their results since then, which the model's turn continues."""


def conversation(messages: Sequence[Message]) -> Conversation:
    """Part a conversation.

    Raises:
        DataError: It ends neither in a user message nor in the results of calls, or nobody asks anything.
    """
    system = "\n\n".join(m.content for m in messages if m.role == "system" and m.content)
    turns = tuple(m for m in messages if m.role != "system")
    if not turns or turns[-1].role == "assistant":
        role = turns[-1].role if turns else "no"
        raise DataError(f"messages: the last one must be a user message or a tool message, not {role!r}")
    end = next((i for i in range(len(turns), 0, -1) if turns[i - 1].role == "user"), 0)
    if end == 0:
        raise DataError("messages: there are results of calls, but no user message before them")
    return Conversation(system, turns[:end], turns[end:])


def prompt_segments(tokenizer: Tokenizer, parts: Sequence[Rendered], roles: Sequence[Role]) -> tuple[Segment, ...]:
    """Encode each part of a prompt by itself."""
    return tuple(_prompt_segment(tokenizer, part, role) for part, role in zip(parts, roles, strict=True))


def _prompt_segment(tokenizer: Tokenizer, part: Rendered, role: Role) -> Segment:
    if role in ("system", "demo"):
        return _shared_segment(tokenizer, part, role)
    return Segment(source="prompt", role=role, ids=tuple(tokenizer.encode(part)), text=part.text)


@lru_cache(maxsize=256)
def _shared_segment(tokenizer: Tokenizer, part: Rendered, role: Role) -> Segment:
    """Encode what many prompts have in common once."""
    return Segment(source="prompt", role=role, ids=tuple(tokenizer.encode(part)), text=part.text)


@lru_cache(maxsize=256)
def separator(tokenizer: Tokenizer, part: Rendered, turn: int) -> tuple[Segment, ...]:
    """Encode what the template puts between turns, once for all runs; no segment where that is nothing."""
    ids = tuple(tokenizer.encode(part))
    return (Segment(source="runtime", role="separator", ids=ids, text=part.text, turn=turn),) * bool(ids)


def observation(tokenizer: Tokenizer, part: Rendered, result: ToolResult, turn: int) -> Segment:
    """Encode one wrapped result."""
    ids = tuple(tokenizer.encode(part))
    return Segment(source="tool", role="tool_result", ids=ids, text=part.text, turn=turn, result=result)


def told(
    tokenizer: Tokenizer,
    result: ToolResult,
    turn: int,
    *,
    wrap: Callable[[str], Rendered],
    tags: Collection[str],
    max_tokens: int,
) -> Segment:
    """Escape a result, cut it where it is too long (see `shown`), wrap it and encode it, as a rule once.

    Args:
        tokenizer: Encodes.
        result: What the tool answered.
        turn: Index of the turn.
        wrap: Puts the text of a result into what the dialect writes around it.
        tags: Names of tags to escape.
        max_tokens: Tokens of the text to keep.
    """
    if len(result.text) <= max_tokens * _CHARACTERS_THAT_MAY_FIT:
        whole = escaped(result, tags)
        segment = observation(tokenizer, wrap(whole.text), whole, turn)
        # A text that fits together with what is around it fits alone, so most texts are encoded only once.
        if len(segment.ids) <= max_tokens:
            return segment
    cut = shown(tokenizer, result, tags=tags, max_tokens=max_tokens)
    return observation(tokenizer, wrap(cut.text), cut, turn)


def after_turn(tokenizer: Tokenizer, rendered: Rendered) -> tuple[Special | None, Rendered]:
    """Find the last token that ends a turn.

    Returns:
        The token and what follows it; `None` and everything where the template ends turns with plain text.
    """
    for index in reversed(range(len(rendered.pieces))):
        piece = rendered.pieces[index]
        if isinstance(piece, Special) and piece.id in tokenizer.eos_ids:
            return piece, Rendered(rendered.pieces[index + 1 :])
    return None, rendered
