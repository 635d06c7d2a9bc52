"""Making prompt and observation segments out of rendered text."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from icrl.errors import DataError
from icrl.tokenizer import Rendered, Special, Tokenizer
from icrl.trajectory import Role, Segment
from icrl.types import Message, ToolResult

__all__ = ["after_turn", "conversation", "observation", "prompt_segments", "separator"]


def conversation(messages: Sequence[Message]) -> tuple[str, tuple[Message, ...]]:
    """Part a conversation into its system text and its turns.

    Raises:
        DataError: It does not end in a user message.
    """
    system = "\n\n".join(m.content for m in messages if m.role == "system" and m.content)
    turns = tuple(m for m in messages if m.role != "system")
    if not turns or turns[-1].role != "user":
        role = turns[-1].role if turns else "no"
        raise DataError(f"messages: the last one must be a user message, not {role!r}")
    return system, turns


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


def separator(tokenizer: Tokenizer, part: Rendered, turn: int) -> tuple[Segment, ...]:
    """Encode what the template puts between turns; no segment where that is nothing."""
    ids = tuple(tokenizer.encode(part))
    return (Segment(source="runtime", role="separator", ids=ids, text=part.text, turn=turn),) * bool(ids)


def observation(tokenizer: Tokenizer, part: Rendered, result: ToolResult, turn: int) -> Segment:
    """Encode one wrapped result."""
    ids = tuple(tokenizer.encode(part))
    return Segment(source="tool", role="tool_result", ids=ids, text=part.text, turn=turn, result=result)


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
