"""Responses that clients may come back to: bounded in number and in age, and each its owner's alone."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from icrl.serve.problem import Problem
from icrl.tokenizer import Tokenizer
from icrl.types import Message

__all__ = ["ResponseStore", "Stored"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A response and the conversation up to its end."""

    owner: str
    """Whoever asked; nobody else can read it."""
    response: dict[str, Any]
    """The response object."""
    input_items: list[dict[str, Any]]
    """What was sent, for `GET /v1/responses/{id}/input_items`."""
    messages: tuple[Message, ...]
    """The conversation, the answer included; what `previous_response_id` continues."""
    trajectory: bytes
    """The run, encoded by `icrl.wire`: a tenth of the memory."""
    tokenizer: Tokenizer
    """What decodes it; the model may have been replaced since."""
    expires: float = field(default=0.0)
    """Monotonic time after which it is gone."""


class ResponseStore:
    """Keeps the newest responses for a while.

    Args:
        max_entries: Responses kept; the oldest goes first.
        ttl_s: Seconds that each is kept.
        clock: Monotonic seconds.

    Example:
        >>> len(ResponseStore(max_entries=1, ttl_s=60.0))
        0
    """

    def __init__(self, *, max_entries: int, ttl_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_entries = max_entries
        self._ttl_s = ttl_s
        self._clock = clock
        self._entries: OrderedDict[str, Stored] = OrderedDict()

    def __len__(self) -> int:
        """Count what is kept, after forgetting what is too old."""
        self._forget()
        return len(self._entries)

    def put(self, id: str, entry: Stored) -> None:  # noqa: A002 - the protocol's word
        """Keep a response."""
        self._entries[id] = replace(entry, expires=self._clock() + self._ttl_s)
        self._forget()

    def get(self, id: str, *, owner: str, param: str | None = "id") -> Stored:  # noqa: A002
        """Return a response of this owner.

        Raises:
            Problem: 404, there is none (any more); somebody else's looks the same.
        """
        self._forget()
        entry = self._entries.get(id)
        if entry is None or entry.owner != owner:
            raise Problem(
                404,
                f"there is no response {id!r}; it was never stored, was deleted, or is too old",
                param=param,
                code="response_not_found",
            )
        return entry

    def delete(self, id: str, *, owner: str) -> None:  # noqa: A002
        """Forget a response.

        Raises:
            Problem: 404, there is none.
        """
        self.get(id, owner=owner)
        del self._entries[id]

    def _forget(self) -> None:
        now = self._clock()
        while self._entries:
            oldest = next(iter(self._entries.values()))
            if len(self._entries) <= self._max_entries and oldest.expires > now:
                return
            self._entries.popitem(last=False)
