"""Requests that are being answered, and under which weights each of their tokens was sampled."""

from __future__ import annotations

import asyncio
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from icrl.testing.script import Said
from icrl.testing.stub.capacity import Batch, Capacity, Job
from icrl.testing.stub.faults import Fault
from icrl.testing.stub.prefix import PrefixMemory
from icrl.testing.stub.requests import Refusal

__all__ = ["Asked", "Live", "Sampler"]


@dataclass(slots=True, kw_only=True)
class Asked:
    """One request to `/generate`, and what became of it."""

    number: int
    """Its place in the order of arrival, from 0."""
    arrived_s: float
    """When it arrived, by the event loop's clock, which several stubs of one loop share."""
    rid: str
    """Its name."""
    ids: Sequence[int]
    """The sequence it was given."""
    key: str | None = None
    """Its `extra_key`: only requests with the same one share what is cached."""
    adapter: str | None = None
    """The LoRA adapter that it named."""
    fault: Fault | None = None
    """What was made to go wrong with it."""
    sampled: Sequence[int] = ()
    """Tokens that were sampled for it."""
    reason: str = ""
    """Why it ended: `stop`, `length`, `abort`, or nothing where it never ran to an end."""
    cached_tokens: int = 0
    """Leading tokens that were in the cache."""


@dataclass(slots=True, eq=False, kw_only=True)
class Live:
    """A request that is being answered."""

    asked: Asked
    """What was asked."""
    said: Said
    """What is going to be said."""
    job: Job
    """How far that is."""
    versions: list[tuple[str, int]]
    """Names of weights, with the first token that each sampled."""
    retractions: int = 0
    """How often its keys and values were dropped."""

    @property
    def aborted(self) -> bool:
        """Whether it ended before its last token."""
        return self.job.over and self.job.produced < self.job.total

    def spans(self, produced: int) -> list[tuple[str, int, int]]:
        """Return names of weights with the tokens that each sampled."""
        ends = [*(start for _, start in self.versions[1:]), produced]
        pairs = zip(self.versions, ends, strict=True)
        return [(version, start, min(end, produced)) for (version, start), end in pairs if start < min(end, produced)]


@dataclass(slots=True, eq=False, kw_only=True)
class Sampler:
    """Everything that a server's process holds in memory: lost when it dies."""

    capacity: Capacity | None = None
    """How fast it is."""
    version: str = "default"
    """Name of the weights."""
    paused: bool = False
    """Whether it was told to pause."""
    live: dict[str, Live] = field(default_factory=dict)
    """Requests that are being answered, by name."""
    caches: dict[str | None, PrefixMemory] = field(default_factory=dict)
    """Sequences whose keys and values it holds, by the key that keeps them apart."""
    totals: Counter[str] = field(default_factory=Counter)
    """What its metrics count: of requests that ended, tokens by kind, and how many were aborted."""
    batch: Batch = field(init=False)
    """Requests that share its speed."""
    going: asyncio.Event = field(default_factory=asyncio.Event)
    """Set while requests are let in."""
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    """Set while none is being answered."""

    def __post_init__(self) -> None:
        self.batch = Batch(self.capacity)
        self.going.set()
        self.idle.set()

    def start(self, asked: Asked, said: Said) -> Live:
        """Begin to answer a request.

        Raises:
            Refusal: Its name is taken.
        """
        if asked.rid in self.live:
            raise Refusal.said(f"Duplicate request ID detected: {asked.rid}")
        asked.cached_tokens = min(self.cache(asked.key).match(asked.ids), len(asked.ids) - 1)
        live = Live(asked=asked, said=said, job=self.batch.start(len(said.ids)), versions=[(self.version, 0)])
        self.live[asked.rid] = live
        self.idle.clear()
        return live

    def end(self, live: Live) -> None:
        """Forget a request that was answered, or whose client went away."""
        if not live.job.over:
            self.batch.stop(live.job)
        produced = live.said.ids[: live.job.produced]
        live.asked.sampled = array("i", produced)
        live.asked.reason = "abort" if live.aborted else "length" if live.said.matched is None else "stop"
        self.totals["generation_tokens"] += len(produced)
        self.totals["prompt_tokens"] += len(live.asked.ids)
        self.totals["cached_tokens"] += live.asked.cached_tokens
        self.totals["num_aborted_requests"] += live.aborted
        del self.live[live.asked.rid]
        self.cache(live.asked.key).add([*live.asked.ids, *produced[:-1]])  # the last token has no keys and values
        if not self.live:
            self.idle.set()

    def cache(self, key: str | None) -> PrefixMemory:
        """Return what is held under a key."""
        return self.caches.setdefault(key, PrefixMemory())

    def abort(self, rid: str) -> None:
        """End a request with what it has; unknown names are ignored."""
        if rid in self.live:
            self.batch.stop(self.live[rid].job)

    def abort_all(self) -> None:
        """End all requests with what they have."""
        for rid in [*self.live]:
            self.abort(rid)

    def pause(self, mode: str) -> None:
        """Stop sampling, and do with running requests what the mode says."""
        self.paused = True
        self.going.clear()
        if mode == "abort":
            self.abort_all()
        self.batch.pause()
        if mode == "retract":
            for live in self.live.values():
                live.retractions += 1

    def proceed(self) -> None:
        """Sample again."""
        self.paused = False
        self.going.set()
        self.batch.resume()

    def renew(self, version: str | None, *, flush: bool) -> None:
        """Take new weights under a name; without one, the old name stays."""
        if flush:
            self.caches.clear()
        if version is None or version == self.version:
            return
        self.version = version
        for live in self.live.values():
            live.versions.append((version, live.job.produced))
