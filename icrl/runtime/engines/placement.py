"""Which server gets a request: where its session was, else where its prefix is, unless that one is too busy."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from typing import Protocol, TypeVar

__all__ = ["Busy", "Placement", "prefix_key"]


class Busy(Protocol):
    """Something that can be chosen."""

    @property
    def index(self) -> int:
        """Which one it is."""
        ...

    @property
    def busy(self) -> int:
        """How many requests compete there."""
        ...


_Server = TypeVar("_Server", bound=Busy)


def prefix_key(ids: Sequence[int], shared_prefix: int) -> Hashable | None:
    """Name the prefix that a request shares with others; `None` where it shares none.

    Example:
        >>> prefix_key([1, 2, 3], 2) == prefix_key([1, 2, 9], 2), prefix_key([1], 0)
        (True, None)
    """
    return (shared_prefix, hash(tuple(ids[:shared_prefix]))) if shared_prefix else None


class Placement:
    """Chooses servers and remembers what it chose, within bounds.

    A session stays where it is: all its keys and values are there. A new session goes to the least busy server that
    holds its prefix. Where that one has `spill_over` requests more than the least busy server of all, the latter gets
    the session, and from then on holds the prefix too.

    Args:
        spill_over: How many requests a holder may be ahead.
        sessions: Sessions to remember.
        prefixes: Prefixes to remember.
    """

    def __init__(self, *, spill_over: int, sessions: int, prefixes: int) -> None:
        self._spill_over = spill_over
        self._bounds = (sessions, prefixes)
        self._sessions: OrderedDict[str, int] = OrderedDict()
        self._prefixes: OrderedDict[Hashable, set[int]] = OrderedDict()

    def choose(
        self, servers: Sequence[_Server], *, session: str | None, ids: Sequence[int], shared_prefix: int
    ) -> _Server:
        """Choose among servers, of which there is at least one.

        Args:
            servers: Those that can be used now.
            session: The request's session.
            ids: Its prompt.
            shared_prefix: How much of that others share.
        """
        if session is not None and (place := self._sessions.get(session)) is not None:
            for server in servers:
                if server.index == place:
                    self._sessions.move_to_end(session)
                    return server
        chosen = self._by_prefix(servers, prefix_key(ids, shared_prefix))
        if session is not None:
            self._sessions[session] = chosen.index
            self._sessions.move_to_end(session)
            if len(self._sessions) > self._bounds[0]:
                self._sessions.popitem(last=False)
        return chosen

    def forget(self, index: int) -> None:
        """Forget which prefixes a server held: it lost them, or their keys and values are those of other weights."""
        for holders in self._prefixes.values():
            holders.discard(index)

    def _by_prefix(self, servers: Sequence[_Server], key: Hashable | None) -> _Server:
        least = min(servers, key=_busy)
        if key is None:
            return least
        holders = self._prefixes.setdefault(key, set())
        self._prefixes.move_to_end(key)
        if len(self._prefixes) > self._bounds[1]:
            self._prefixes.popitem(last=False)
        holding = [server for server in servers if server.index in holders]
        chosen = min(holding, key=_busy, default=least)
        if chosen.busy >= least.busy + self._spill_over:
            chosen = least
        holders.add(chosen.index)
        return chosen


def _busy(server: Busy) -> int:
    return server.busy
