"""How an engine talks to its server."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from icrl.errors import ConfigError

__all__ = ["SGLangConfig", "TransportName"]

TransportName = Literal["disk", "tensor", "distributed"]
"""How weights travel to the server."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SGLangConfig:
    """How an engine talks to its server."""

    stall_s: float = 300.0
    """Seconds without progress after which a request counts as lost: without a byte of a streamed reply, or without
    the reply where it is not streamed."""
    answer_s: float = 30.0
    """Seconds within which the server answers what is no generation: facts, load, health."""
    abort_s: float = 3.0
    """Seconds that the server has to give an aborted request back, before what is here already is returned."""
    stream_from: int = 1024
    """Requests that may sample this many tokens are streamed, so that a lost server does not cost all of them."""
    chunk_tokens: int = 256
    """Tokens an event of such a stream at least; an eighth of the request's budget where that is more."""
    delta_tokens: int = 4
    """Tokens an event where somebody watches (`on_delta`)."""

    def __post_init__(self) -> None:
        for item in fields(self):
            if getattr(self, item.name) <= 0:
                raise ConfigError(f"{item.name}: must be > 0, not {getattr(self, item.name)!r}")

    def events_of(self, max_tokens: int, *, watched: bool) -> int | None:
        """Return the tokens an event of a request's reply, or `None` where it is not streamed.

        Args:
            max_tokens: Tokens that the request may sample.
            watched: Whether somebody wants to see tokens as they come.

        Example:
            >>> SGLangConfig().events_of(160, watched=False), SGLangConfig().events_of(8192, watched=False)
            (None, 1024)
        """
        if watched:
            return self.delta_tokens
        if max_tokens < self.stream_from:
            return None
        return max(self.chunk_tokens, max_tokens // 8)
