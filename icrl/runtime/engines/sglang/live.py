"""A request that is under way."""

from __future__ import annotations

import asyncio
import itertools
import secrets
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from icrl.runtime.engines.sglang.streaming import Arrived
from icrl.runtime.engines.sglang.versions import Versions, crossed
from icrl.trajectory import FinishReason, Generation, VersionSpan

if TYPE_CHECKING:
    from icrl.runtime.engines.sglang.adapters import LoadedAdapter

__all__ = ["Live", "unique_rid"]

_PROCESS = secrets.token_hex(4)
_numbers = itertools.count()


def unique_rid(request_id: str) -> str:
    """Return a name for a request at the server that no other request of any client has.

    A server aborts every request whose name *begins* with the one that it is given, so no name may begin another: the
    number before the slash is used once.
    """
    return f"icrl-{_PROCESS}-{next(_numbers):x}/{request_id}"


@dataclass(slots=True, eq=False, kw_only=True)
class Live:
    """A request that is under way."""

    rid: str
    """Its name at the server."""
    prompt_tokens: int
    """Tokens of its prompt."""
    arrived: Arrived
    """What has come back."""
    adapter: LoadedAdapter | None = None
    """The LoRA adapter that it names, if any."""
    crossings: dict[int, int] = field(default_factory=dict)
    """Versions before and after every pause for weights that found it under way, and let it keep what the older
    computed."""
    started: float = field(default_factory=time.monotonic)
    """When it began, in seconds of the monotonic clock."""
    aborted: bool = False
    """Whether it was asked to end."""
    done: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once nobody waits for it any more."""
    scope: asyncio.Timeout = field(default_factory=lambda: asyncio.timeout(None))
    """Ends the wait for the server without cancelling whoever waits."""

    def give_up(self) -> None:
        """Stop waiting for the server; what has arrived is the result."""
        if not self.done.is_set() and not self.scope.expired():
            self.scope.reschedule(asyncio.get_running_loop().time())

    def partial(self, versions: Versions) -> Generation:
        """Return what has arrived, as an aborted generation."""
        return self.generation("abort", self.arrived.spans(versions))

    def generation(self, reason: FinishReason, spans: tuple[VersionSpan, ...]) -> Generation:
        """Return what has arrived."""
        for older, newer in self.crossings.items():
            spans = crossed(spans, older, newer)
        return Generation(
            ids=tuple(self.arrived.ids),
            logprobs=tuple(self.arrived.logprobs),
            finish_reason=reason,
            versions=spans,
            prompt_tokens=self.prompt_tokens,
            cached_tokens=self.arrived.meta.cached_tokens,
            wall_s=time.monotonic() - self.started,
        )
