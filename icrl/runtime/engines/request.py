"""A request in flight, and what stays of it in the cache."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from icrl.runtime.engines.stop import StopStrings
from icrl.trajectory import FinishReason, Generation, VersionSpan
from icrl.types import SamplingParams

__all__ = ["Parked", "Prefix", "Request"]


@dataclass(slots=True, eq=False, kw_only=True)
class Prefix:
    """Keys and values of leading tokens that requests share, computed once per weight version."""

    ids: tuple[int, ...]
    """[P] the tokens."""
    layers: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)
    """Keys and values [kv heads, P, width] of each layer; empty until they are computed."""
    users: int = 0
    """Running, waiting and parked sequences that refer to it."""

    @property
    def ready(self) -> bool:
        """Whether it can be attended to."""
        return bool(self.layers)


@dataclass(slots=True, eq=False, kw_only=True)
class Parked:
    """A finished generation whose keys and values wait for the session's next request."""

    ids: list[int]
    """Tokens that have keys and values."""
    slot: int
    """Where they are."""
    prefix: Prefix | None
    """Where those of the leading tokens are."""

    @property
    def own_tokens(self) -> int:
        """Tokens whose keys and values are in the slot."""
        return len(self.ids) - (len(self.prefix.ids) if self.prefix else 0)


@dataclass(slots=True, eq=False, kw_only=True)
class Request:
    """A request in flight, or a prefix being computed (`fills`)."""

    id: str
    """Names the request for `abort`."""
    ids: list[int]
    """Prompt and sampled tokens."""
    params: SamplingParams
    """How to sample."""
    limit: int
    """Tokens to sample at most, the context limit included."""
    finish: Callable[[Generation], None]
    """Called with the result."""
    session: str | None = None
    """Whose slot to take over and to leave."""
    shared_prefix: int = 0
    """Leading tokens that other requests share."""
    on_delta: Callable[[int], None] | None = None
    """Called with each sampled token."""
    stop: StopStrings | None = None
    """Set where the request has stop strings."""
    fills: Prefix | None = None
    """The prefix that this pseudo-request computes."""
    prompt_tokens: int = 0
    """Tokens of the prompt."""
    computed: int = 0
    """Leading tokens that have keys and values, in the prefix or in the slot."""
    keys_version: int = 0
    """Weight version when the first of its keys and values were computed or taken over."""
    cached_tokens: int = 0
    """Prompt tokens that did not have to be run."""
    slot: int = -1
    """Its slot while it runs."""
    prefix: Prefix | None = None
    """The shared prefix that it refers to."""
    logprobs: list[float] = field(default_factory=list)
    """One a sampled token."""
    versions: list[tuple[int, int]] = field(default_factory=list)
    """(weight version, first sampled token) wherever the version changed."""
    started: float = field(default_factory=time.perf_counter)
    """Clock at submission."""

    def __post_init__(self) -> None:
        self.prompt_tokens = len(self.ids)

    @property
    def offset(self) -> int:
        """Tokens that live in the prefix instead of the slot."""
        return len(self.prefix.ids) if self.prefix else 0

    @property
    def own_tokens(self) -> int:
        """Tokens whose keys and values are in the slot."""
        return self.computed - self.offset

    @property
    def pending(self) -> int:
        """Tokens that still have to be run."""
        return len(self.ids) - self.computed

    def accept(self, token: int, logprob: float, version: int) -> None:
        """Append a sampled token."""
        if not self.versions or self.versions[-1][0] != version:
            self.versions.append((version, len(self.logprobs)))
        self.ids.append(token)
        self.logprobs.append(logprob)

    def finished(self, end_ids: frozenset[int]) -> FinishReason | None:
        """Say why the generation ends with the last token, if it does."""
        if self.ids[-1] in end_ids:
            return "eos"
        if self.stop is not None and self.stop.ends(self.ids[self.prompt_tokens :]):
            return "stop"
        return "length" if len(self.logprobs) >= self.limit else None

    def generation(self, reason: FinishReason) -> Generation:
        """Cut the result."""
        bounds = [*(start for _, start in self.versions), len(self.logprobs)]
        spans = zip(self.versions, bounds[1:], strict=True)
        return Generation(
            ids=tuple(self.ids[self.prompt_tokens :]),
            logprobs=tuple(self.logprobs),
            finish_reason=reason,
            versions=tuple(VersionSpan(version=v, start=start, end=end) for (v, start), end in spans),
            prompt_tokens=self.prompt_tokens,
            cached_tokens=self.cached_tokens,
            wall_s=time.perf_counter() - self.started,
        )
