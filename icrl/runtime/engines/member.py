"""One server of a pool, and what the pool knows about it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from typing import Literal, Protocol, runtime_checkable

from icrl.errors import EngineError
from icrl.runtime.engines.protocol import EngineLoad, Server

__all__ = ["Leaver", "Member", "MemberState", "Startable", "describe"]

MemberState = Literal["used", "stale", "away"]
"""Whether a server gets requests; if not, whether it lacks the pool's weights or does not serve at all."""


@runtime_checkable
class Startable(Protocol):
    """An engine that has to connect, or to load, before it is used."""

    async def start(self) -> None:
        """Connect or load; once more after the server was restarted."""
        ...


class Leaver(Protocol):
    """A request that can be sent away from its server."""

    def leave(self, why: str) -> None:
        """Go elsewhere with what there is."""
        ...


class Member:
    """One server of a pool.

    Args:
        server: The server.
        index: Its position in the pool, for a name until it has one.
        probes: How many of its last probes are remembered.
    """

    __slots__ = (
        "foreign",
        "in_flight",
        "index",
        "label",
        "load",
        "maybe_paused",
        "outcomes",
        "path",
        "requests",
        "server",
        "since",
        "state",
        "tainted",
        "why",
    )

    def __init__(self, server: Server, index: int, *, probes: int) -> None:
        self.server = server
        self.index = index
        self.state: MemberState = "away"
        """Whether it gets requests."""
        self.why = "was not reached yet"
        """Why it gets none."""
        self.since = time.monotonic()
        """When it got into this state."""
        self.in_flight = 0
        """Requests of this pool that it is working on."""
        self.foreign = 0
        """Requests of others that it was working on at the last probe."""
        self.load: EngineLoad | None = None
        """What it said at the last probe."""
        self.outcomes: deque[bool] = deque(maxlen=probes)
        """Which of the last probes were good."""
        self.requests: set[Leaver] = set()
        """The pool's requests there."""
        self.tainted = False
        """Whether nobody knows what weights it has, because an update failed or somebody else changed them."""
        self.label: str | None = None
        """What it called its weights when it was reached first, where it gives them names."""
        self.path: str | None = None
        """Where it had its model from then."""
        self.maybe_paused = False
        """Whether it was told to pause, and not successfully to resume."""

    @property
    def name(self) -> str:
        """Its address; its position where it never said who it is."""
        address = getattr(getattr(self.server, "client", None), "address", None)
        if isinstance(address, str):
            return address
        try:
            return self.server.info.name
        except EngineError:
            return f"member {self.index}"

    @property
    def version(self) -> int:
        """The weights that it says it has.

        Raises:
            EngineError: It was never reached.
        """
        return self.server.info.weight_version

    def identify(self, current: int | None, *, ours: bool = True) -> None:
        """Notice weights that are neither those that it was reached with first nor the pool's current ones.

        Args:
            current: The pool's version.
            ours: Whether the pool sends weights; if not, somebody else may have sent newer ones.
        """
        facts = getattr(self.server, "facts", None)
        label, path = getattr(facts, "weight_version", None), getattr(facts, "model_path", None)
        if self.label is None or (not ours and self.version > (current or 0)):
            self.label, self.path, self.tainted = label, path, self.tainted and ours
        if label is None:
            return
        # Whose weights are current is in their name; the same number under another name is somebody else's.
        same = label == self._named(current) if ours else label.partition("@")[0] == str(current)
        first = label == self.label and not (ours and self.version == current)
        if not (same or first) or (label == self.label and path != self.path):
            self.tainted = True

    def _named(self, version: int | None) -> str:
        name = getattr(self.server, "weight_name", str)
        return str(name(version))

    @property
    def busy(self) -> int:
        """How many requests compete there, as far as one can know."""
        return self.in_flight + self.foreign

    def turn(self, state: MemberState, why: str = "") -> None:
        """Take a state."""
        self.state, self.why, self.since = state, why, time.monotonic()

    def note(self, load: EngineLoad) -> None:
        """Remember a good probe."""
        self.outcomes.append(True)
        self.load = load
        self.foreign = max(0, load.running + load.waiting - self.in_flight)


def describe(members: Iterable[Member]) -> str:
    """Say of each server why it gets no requests.

    Example:
        >>> from icrl.testing import ScriptedEngine
        >>> describe([Member(ScriptedEngine([]), 0, probes=5)])
        'scripted: was not reached yet'
    """
    return "; ".join(f"{member.name}: {member.why or 'is used'}" for member in members)
