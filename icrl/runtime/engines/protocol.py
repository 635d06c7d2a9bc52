"""What the runtime needs from anything that generates tokens, and from anything whose weights can be replaced."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from icrl.errors import EngineError
from icrl.trajectory import Generation
from icrl.types import SamplingParams

__all__ = [
    "FOREIGN",
    "Engine",
    "EngineInfo",
    "EngineLoad",
    "LostRequest",
    "OnDelta",
    "PauseMode",
    "Server",
    "WeightSink",
    "check_request",
]

FOREIGN = 1 << 62
"""Version of weights that somebody else gave a server while it was used from here; no run reaches it."""

OnDelta = Callable[[Sequence[int]], None]
"""Called on the event loop with newly sampled ids, in order; for display."""

PauseMode = Literal["abort", "in_place", "retract"]
"""What becomes of running requests while weights change: `abort` returns partials; the others continue afterwards,
`in_place` with the keys and values that they have, `retract` after computing them again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineInfo:
    """What an engine can do, read at connect."""

    name: str
    """For messages: a model path or an address."""
    vocab_size: int
    """Ids must be below this; larger ones kill real servers, so they are refused here."""
    context_limit: int
    """Tokens of prompt plus generation."""
    weight_version: int = 0
    """Version that a request starting now is sampled under."""
    capabilities: frozenset[str] = frozenset()
    """Any of `logprobs`, `abort`, `prefix_cache`, `weights`, `deltas`; an engine without `logprobs` cannot train."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLoad:
    """How busy an engine is; the scheduler sets its concurrency by it, the pool chooses by it."""

    running: int
    """Requests that are being sampled."""
    waiting: int
    """Requests in the engine's own queue."""
    kv_usage: float
    """Share of the memory for keys and values that is taken, from 0 to 1."""


class LostRequest(EngineError):
    """An engine went away in the middle of a request; what had arrived until then can be continued elsewhere.

    Args:
        message: What happened.
        engine: The engine's name.
        partial: What had arrived, finish reason `"abort"`; may be empty.
        status: HTTP status where there is one.

    Example:
        >>> lost = LostRequest("the connection broke", engine="http://127.0.0.1:30000",
        ...                    partial=Generation(ids=(5,), logprobs=(-0.1,), finish_reason="abort"))
        >>> lost.partial.ids, lost.retryable
        ((5,), True)
    """

    def __init__(self, message: str, *, engine: str, partial: Generation, status: int | None = None) -> None:
        super().__init__(message, engine=engine, status=status, retryable=True)
        self.partial = partial


@runtime_checkable
class Engine(Protocol):
    """Generates tokens from token ids; one instance serves many concurrent requests of one event loop.

    Engines that are also a `WeightSink` can be trained against.
    """

    @property
    def info(self) -> EngineInfo:
        """What the engine can do."""
        ...

    async def generate(
        self,
        ids: Sequence[int],
        params: SamplingParams,
        *,
        request_id: str,
        session: str | None = None,
        shared_prefix: int = 0,
        on_delta: OnDelta | None = None,
    ) -> Generation:
        """Sample a continuation of `ids`.

        Args:
            ids: The whole sequence so far.
            params: How to sample.
            request_id: Unique among live requests; names the request for `abort`.
            session: Requests of one session extend each other (a trajectory's turns); a cache and placement hint.
            shared_prefix: How many leading ids other requests share (instruction and demonstrations); likewise.
            on_delta: Called with new ids as they are sampled.

        Raises:
            EngineError: The engine failed, or the request is out of its bounds.
        """
        ...

    async def abort(self, request_id: str) -> None:
        """Make the pending `generate` return what it has, with finish reason `"abort"`; unknown ids are ignored."""
        ...

    async def aclose(self) -> None:
        """Release everything; pending requests return as aborted."""
        ...


class WeightSink(Protocol):
    """Something that a trainer can push weights into between decode steps."""

    async def pause(self, mode: PauseMode = "in_place") -> None:
        """Stop sampling; `abort` returns partials, the others continue after `resume`."""
        ...

    async def update(self, weights: Iterable[tuple[str, Any]], version: int) -> None:
        """Replace the weights and raise the version; cached keys and values are dropped."""
        ...

    async def resume(self) -> None:
        """Sample again."""
        ...


@runtime_checkable
class Server(Engine, WeightSink, Protocol):
    """An engine of its own process, which may be busy, or gone."""

    async def probe(self) -> EngineLoad:
        """Say how busy it is.

        Raises:
            EngineError: It does not serve: unreachable, starting, or shutting down.
        """
        ...


def check_request(info: EngineInfo, ids: Sequence[int], *, checked: int = 0) -> None:
    """Refuse a request that would crash a model or a server before it reaches one.

    Args:
        info: The engine's bounds.
        ids: The prompt.
        checked: Leading ids that were found good before, as those of a session's last request.

    Raises:
        EngineError: The prompt is empty, too long, or contains an id outside the vocabulary.

    Example:
        >>> check_request(EngineInfo(name="e", vocab_size=8, context_limit=4), [9])
        Traceback (most recent call last):
        icrl.errors.EngineError: e: token id 9 at position 0 is outside the vocabulary of 8
    """
    if not len(ids):
        raise EngineError("the prompt is empty", engine=info.name)
    if len(ids) >= info.context_limit:
        raise EngineError(
            f"the prompt has {len(ids)} tokens; the context limit is {info.context_limit}", engine=info.name
        )
    new = ids[checked:] if checked else ids
    if not len(new):
        return
    largest, smallest = max(new), min(new)
    if smallest < 0 or largest >= info.vocab_size:
        wrong = next(i for i, token in enumerate(ids) if not 0 <= token < info.vocab_size)
        raise EngineError(
            f"token id {ids[wrong]} at position {wrong} is outside the vocabulary of {info.vocab_size}",
            engine=info.name,
        )
