"""How much of the time an engine has something to do, and what it does for whoever asks it here."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from icrl.trajectory import Generation

__all__ = ["EngineUse", "Meter", "Metered", "Reading", "use_between"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What a meter shows at one moment, summed since it was made."""

    at_s: float
    """When, on the clock of `time.monotonic`."""
    busy_s: float
    """Seconds with at least one request under way."""
    request_s: float
    """Seconds, summed over requests under way."""
    sampled_tokens: int
    """Tokens of the requests that ended."""
    prompt_tokens: int
    """Tokens that these were given."""
    cached_tokens: int
    """Of those, how many came from the engine's cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineUse:
    """How an engine was used over some time, as seen from this process.

    A request is under way from the moment at which it is sent until its reply has been read. Waiting for another try,
    or for a server that is away, is not; nor is the time in which the engine is paused for new weights. The network,
    the engine's own queue, and the time for which a reply waits to be read here all count, so `busy` is an upper bound
    of the engine's own busy time, and 1 - `busy` is time in which it certainly had nothing of ours to do. The union of
    the intervals is exact: nothing is sampled.

    Of several servers, `busy` is the mean: one of two that works all the time is 0.5, and a server that is away is
    idle. The servers behind an sglang-router are one server here, busy if any of them is.
    """

    busy: float
    """Share of the time with at least one request under way, from 0 to 1."""
    requests: float
    """Requests under way, the mean over time, summed over servers."""
    tokens_per_s: float
    """Tokens a second of this time, of the requests that ended in it, whatever became of their trajectories."""
    cache_hit_rate: float | None = None
    """Share of these requests' input that came from the engine's cache; `None` where none ended."""


class Meter:
    """Counts what an engine is asked to do; belongs to the engine's event loop.

    Example:
        >>> meter = Meter()
        >>> before = meter.read()
        >>> meter.enter()
        >>> meter.leave(Generation(ids=(5,), logprobs=(-0.1,), finish_reason="eos", prompt_tokens=4, cached_tokens=3))
        >>> use = use_between([before], [meter.read()])
        >>> 0 < use.busy <= 1, use.cache_hit_rate
        (True, 0.75)
    """

    __slots__ = ("_at_s", "_busy_s", "_cached", "_paused", "_prompt", "_request_s", "_running", "_sampled")

    def __init__(self) -> None:
        self._at_s = time.monotonic()
        self._busy_s = self._request_s = 0.0
        self._running = self._sampled = self._prompt = self._cached = 0
        self._paused = False

    def enter(self) -> None:
        """Note that a request is sent."""
        self._advance()
        self._running += 1

    def leave(self, result: Generation | None) -> None:
        """Note that a request has ended, and with what, if with anything."""
        self._advance()
        self._running -= 1
        if result is not None:
            self._sampled += len(result.ids)
            self._prompt += result.prompt_tokens
            self._cached += result.cached_tokens

    def pause(self) -> None:
        """Note that the engine stops sampling."""
        self._advance()
        self._paused = True

    def resume(self) -> None:
        """Note that it samples again."""
        self._advance()
        self._paused = False

    def read(self) -> Reading:
        """Return what was counted until now."""
        self._advance()
        return Reading(
            at_s=self._at_s,
            busy_s=self._busy_s,
            request_s=self._request_s,
            sampled_tokens=self._sampled,
            prompt_tokens=self._prompt,
            cached_tokens=self._cached,
        )

    def _advance(self) -> None:
        now = time.monotonic()
        if self._running and not self._paused:
            self._busy_s += now - self._at_s
            self._request_s += (now - self._at_s) * self._running
        self._at_s = now


@runtime_checkable
class Metered(Protocol):
    """An engine that counts what it is asked to do."""

    @property
    def meter(self) -> Meter:
        """Its meter."""
        ...


def use_between(before: Sequence[Reading], after: Sequence[Reading]) -> EngineUse | None:
    """Return how engines were used between two readings of their meters.

    Args:
        before: [S] first reading of each engine.
        after: [S] second reading of each.

    Returns:
        Nothing where no engine has a meter, or no time passed.

    Example:
        >>> first = Reading(at_s=0.0, busy_s=0.0, request_s=0.0, sampled_tokens=0, prompt_tokens=0, cached_tokens=0)
        >>> then = Reading(at_s=4.0, busy_s=3.0, request_s=6.0, sampled_tokens=40, prompt_tokens=10, cached_tokens=5)
        >>> use_between([first], [then])
        EngineUse(busy=0.75, requests=1.5, tokens_per_s=10.0, cache_hit_rate=0.5)
    """
    pairs = [(b, a, a.at_s - b.at_s) for b, a in zip(before, after, strict=True) if a.at_s > b.at_s]
    if not pairs:
        return None
    prompt = sum(a.prompt_tokens - b.prompt_tokens for b, a, _ in pairs)
    cached = sum(a.cached_tokens - b.cached_tokens for b, a, _ in pairs)
    return EngineUse(
        busy=sum((a.busy_s - b.busy_s) / wall_s for b, a, wall_s in pairs) / len(pairs),
        requests=sum((a.request_s - b.request_s) / wall_s for b, a, wall_s in pairs),
        tokens_per_s=sum((a.sampled_tokens - b.sampled_tokens) / wall_s for b, a, wall_s in pairs),
        cache_hit_rate=cached / prompt if prompt else None,
    )
