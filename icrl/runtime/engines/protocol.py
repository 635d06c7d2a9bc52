"""What the runtime needs from anything that generates tokens, and from anything whose weights can be replaced."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from icrl.errors import EngineError
from icrl.trajectory import Generation
from icrl.types import SamplingParams

__all__ = ["Engine", "EngineInfo", "OnDelta", "WeightSink", "check_request"]

OnDelta = Callable[[Sequence[int]], None]
"""Called on the event loop with newly sampled ids, in order; for display."""


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
    """Any of `logprobs`, `abort`, `prefix_cache`, `weights`, `deltas`."""


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

    async def pause(self, mode: Literal["abort", "in_place", "retract"] = "in_place") -> None:
        """Stop sampling; `abort` returns partials, the others continue after `resume`."""
        ...

    async def update(self, weights: Iterable[tuple[str, Any]], version: int) -> None:
        """Replace the weights and raise the version; cached keys and values are dropped."""
        ...

    async def resume(self) -> None:
        """Sample again."""
        ...


def check_request(info: EngineInfo, ids: Sequence[int], params: SamplingParams) -> None:
    """Refuse a request that would crash a model or a server before it reaches one.

    Raises:
        EngineError: The prompt is empty, too long, or contains an id outside the vocabulary.

    Example:
        >>> check_request(EngineInfo(name="e", vocab_size=8, context_limit=4), [9], SamplingParams(max_tokens=1))
        Traceback (most recent call last):
        icrl.errors.EngineError: e: token id 9 at position 0 is outside the vocabulary of 8
    """
    if not len(ids):
        raise EngineError("the prompt is empty", engine=info.name)
    if len(ids) >= info.context_limit:
        raise EngineError(
            f"the prompt has {len(ids)} tokens; the context limit is {info.context_limit}", engine=info.name
        )
    largest, smallest = max(ids), min(ids)
    if smallest < 0 or largest >= info.vocab_size:
        wrong = next(i for i, token in enumerate(ids) if not 0 <= token < info.vocab_size)
        raise EngineError(
            f"token id {ids[wrong]} at position {wrong} is outside the vocabulary of {info.vocab_size}",
            engine=info.name,
        )
