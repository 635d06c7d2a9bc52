"""Responses that clients may come back to: bounded in number, in size and in age, and each its owner's alone."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from icrl.serve.problem import Problem
from icrl.tokenizer import Tokenizer
from icrl.types import Message

__all__ = ["ResponseStore", "Stored"]

_MESSAGES = msgspec.json.Decoder(tuple[Message, ...])


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A response and the conversation up to its end, encoded: a fraction of the memory, and of known size."""

    owner: str
    """Whoever asked; nobody else can read it."""
    response: bytes
    """The response object, as JSON."""
    input_items: bytes
    """What was sent, for `GET /v1/responses/{id}/input_items`, as JSON."""
    conversation: bytes
    """The messages, the answer included, encoded by `icrl.wire`; what `previous_response_id` continues."""
    trajectory: bytes
    """The run, encoded by `icrl.wire`."""
    tokenizer: Tokenizer
    """What decodes it; the model may have been replaced since."""

    @property
    def messages(self) -> tuple[Message, ...]:
        """The conversation."""
        return _MESSAGES.decode(self.conversation)

    @property
    def size(self) -> int:
        """Bytes that it takes."""
        return len(self.response) + len(self.input_items) + len(self.conversation) + len(self.trajectory)


class ResponseStore:
    """Keeps the newest responses for a while.

    Args:
        max_entries: Responses kept; the oldest goes first.
        max_bytes: Bytes of all of them together.
        ttl_s: Seconds that each is kept.
        clock: Monotonic seconds.

    Example:
        >>> len(ResponseStore(max_entries=1, max_bytes=1000, ttl_s=60.0))
        0
    """

    def __init__(
        self, *, max_entries: int, max_bytes: int, ttl_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._ttl_s = ttl_s
        self._clock = clock
        self._entries: OrderedDict[str, tuple[float, Stored]] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        """Count what is kept, after forgetting what is too old."""
        self._forget()
        return len(self._entries)

    @property
    def size(self) -> int:
        """Bytes of everything kept."""
        return self._bytes

    def put(self, id: str, entry: Stored) -> None:  # noqa: A002 - the protocol's word
        """Keep a response."""
        self._drop(id)
        self._entries[id] = self._clock() + self._ttl_s, entry
        self._bytes += entry.size
        self._forget()

    def get(self, id: str, *, owner: str, param: str | None = "id") -> Stored:  # noqa: A002
        """Return a response of this owner.

        Raises:
            Problem: 404, there is none (any more); somebody else's looks the same.
        """
        self._forget()
        _, entry = self._entries.get(id, (0.0, None))
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
        self._drop(id)

    def _drop(self, id: str) -> None:  # noqa: A002
        if id in self._entries:
            self._bytes -= self._entries.pop(id)[1].size

    def _forget(self) -> None:
        now = self._clock()
        while self._entries:
            oldest, (expires, _) = next(iter(self._entries.items()))
            if len(self._entries) <= self._max_entries and self._bytes <= self._max_bytes and expires > now:
                return
            self._drop(oldest)
