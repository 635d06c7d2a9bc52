"""Going on behind the results of calls, token by token as a run would have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from icrl.runtime.dialects.hermes_template import RESPONSE, frame_of, split_response
from icrl.runtime.dialects.segments import after_turn
from icrl.tokenizer import Rendered, Tokenizer
from icrl.types import Message

__all__ = ["continuation"]


def continuation(
    tokenizer: Tokenizer,
    chat: Sequence[Message],
    since: Sequence[Message],
    *,
    tools: Sequence[Mapping[str, Any]],
    query: tuple[tuple[int, int], Rendered],
) -> list[Rendered]:
    """Render a query, calls and results, cut where a run encodes them: query, turn, separator, each result, separator.

    Where the template writes a turn otherwise once there are results behind it, there is no such place, and what
    cannot be told apart is one part.

    Args:
        tokenizer: Renders.
        chat: The conversation up to its last user message.
        since: What follows.
        tools: Functions to declare.
        query: Where the last user message begins, as a cut, and what the chat renders from there on.

    Returns:
        Parts from there on.
    """
    if not since:
        return [query[1]]
    told = [(len(chat) + i, 0) for i, message in enumerate(since) if message.role == "tool"]
    _, first, *bodies = tokenizer.render([*chat, *since], tools=tools, cuts=[query[0], *told])
    opening, parts = query[1], list[Rendered]()
    before = first
    for (index, _), body in zip(told, bodies, strict=True):
        if since[index - len(chat) - 1].role != "tool":
            said, before = before.split(before.text.rfind(RESPONSE))
            parts += _turn(tokenizer, said, opening)
            opening = frame_of(tokenizer, 1).after
        ending, following = split_response(tokenizer, body)
        parts.append(before + ending)
        before = following
    return [part for part in (*parts, before) if part.pieces]


def _turn(tokenizer: Tokenizer, said: Rendered, opening: Rendered) -> list[Rendered]:
    """Cut what stands before a turn's results: what opens the turn, the turn with its end token, the separator."""
    at = len(opening.text) if said.text.startswith(opening.text) else 0
    before, turn = said.split(at)
    after = after_turn(tokenizer, turn)[1]
    return [before, *turn.split(len(turn.text) - len(after.text))]
