"""The engine itself, without threads: requests join and leave between steps, one step is one forward pass."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch

from icrl.runtime.engines.cache import MIN_SLOTS, KeyValueCache
from icrl.runtime.engines.layout import flatten
from icrl.runtime.engines.loading import LoadedModel, copy_weights
from icrl.runtime.engines.protocol import EngineInfo
from icrl.runtime.engines.request import Prefix, Request
from icrl.runtime.engines.sampling import Draw, as_seeds, sample
from icrl.runtime.engines.slots import ALIGNMENT, SlotStore
from icrl.trajectory import FinishReason
from icrl.types import SamplingParams

__all__ = ["Core"]

PauseMode = Literal["abort", "in_place", "retract"]

SPARSE = 2
"""Slots per decoding request from which on requests are moved together."""


class Core:
    """Schedules requests over a model; every method runs between two steps.

    Args:
        loaded: The model.
        info: What it says of itself.
        max_running: Requests in one step at most.
        max_step_tokens: Tokens in one step at most; longer prompts are run in chunks.
        max_kv_tokens: Bound on cached tokens.
    """

    def __init__(
        self, loaded: LoadedModel, info: EngineInfo, *, max_running: int, max_step_tokens: int, max_kv_tokens: int
    ) -> None:
        # Threads that begin to compute later inherit this count, those that already do keep theirs.
        torch.set_num_threads(loaded.threads)
        self.loaded = loaded
        self._info = info
        self.version = 0
        self.cache = KeyValueCache(
            SlotStore(loaded.device, ragged=loaded.ragged), max_tokens=max_kv_tokens, max_slots=max_running
        )
        self._max_running = max_running
        self._max_step_tokens = max_step_tokens
        self._waiting: deque[Request] = deque()
        self._running: list[Request] = []
        self._paused = False

    @property
    def info(self) -> EngineInfo:
        """What the engine can do; no sequence may need more than the cache can hold for it alone."""
        room = self.cache.max_tokens // MIN_SLOTS // ALIGNMENT * ALIGNMENT
        limit = min(self._info.context_limit, room)
        return replace(self._info, context_limit=limit, weight_version=self.version)

    @property
    def busy(self) -> bool:
        """Whether `step` has anything to do."""
        return not self._paused and bool(self._waiting or self._running)

    def submit(self, request: Request) -> None:
        """Queue a request."""
        self._waiting.append(request)

    def abort(self, request_id: str | None = None) -> None:
        """Finish a request with what it has, or all requests."""
        live = [*self._running, *self._waiting]
        for request in [r for r in live if r.fills is None and request_id in (None, r.id)]:
            self._finish(request, "abort")

    def pause(self, mode: PauseMode) -> None:
        """Stop stepping; `retract` also makes running requests compute their keys and values again."""
        self._paused = True
        if mode == "abort":
            self.abort()
        elif mode == "retract":
            self._retract(list(self._running))

    def resume(self) -> None:
        """Step again."""
        self._paused = False

    def update(self, weights: Iterable[tuple[str, Any]], version: int) -> None:
        """Replace the weights; running requests go on, everything cached for later ones is dropped.

        Raises:
            WeightSyncError: Names or shapes do not fit the model; nothing was changed.
        """
        copy_weights(self.loaded.model, weights)
        self.version = version
        self._retract([request for request in self._running if request.fills is not None])
        self.cache.forget()

    @torch.inference_mode()
    def step(self) -> None:
        """Run one forward pass and sample where a request is up to date."""
        self._admit()
        if not self._running:
            return
        decoding, joining = self._choose()
        if not self._running:
            return
        runs = [*((request, 1) for request in decoding), *joining]
        batch = flatten(self.cache.store, decoding, joining, self.loaded.dtype)
        for request, n in runs:
            request.computed += n
        complete = [i for i, (request, _) in enumerate(runs) if not request.pending]
        logits = batch.run(self.loaded.model, [batch.ends[i] for i in complete])
        done = [runs[i][0] for i in complete]
        if any(request.fills is not None for request in done):
            kept = [i for i, request in enumerate(done) if request.fills is None]
            self._fill([request for request in done if request.fills is not None])
            logits, done = logits[kept], [done[i] for i in kept]
        if done:
            self._sample(done, logits)

    def _sample(self, requests: list[Request], logits: torch.Tensor) -> None:
        tokens, logprobs = sample(logits, _draw(requests))
        for request, token, logprob in zip(requests, tokens, logprobs, strict=True):
            request.accept(token, logprob, self.version)
            if request.on_delta is not None:
                request.on_delta(token)
            reason = request.finished(self.loaded.end_ids)
            if reason is not None:
                self._finish(request, reason)

    def _finish(self, request: Request, reason: FinishReason) -> None:
        if request.slot >= 0:
            self._running.remove(request)
            # Keys of older weights serve the request that has them, and no later one.
            self.cache.park(request) if request.keys_version == self.version else self.cache.release(request)
        else:
            self._waiting.remove(request)
        request.finish(request.generation(reason))

    def _fill(self, requests: list[Request]) -> None:
        """Move computed prefixes out of their slots."""
        for request in requests:
            assert request.fills is not None
            request.fills.layers = self.cache.store.copy_out(request.slot, request.computed)
            request.fills.users -= 1
            self._running.remove(request)
            self.cache.release(request)

    def _retract(self, requests: list[Request]) -> None:
        """Send requests back to the queue, in order; prefixes in the making are given up."""
        for request in reversed(requests):
            self._running.remove(request)
            self.cache.release(request)
            request.computed = 0
            if request.fills is None:
                self._waiting.appendleft(request)
            else:
                self.cache.remove_prefix(request.fills)

    def _admit(self) -> None:
        """Move requests from the queue to slots, in order; those whose prefix is being computed wait for it."""
        held: list[Request] = []
        while self._waiting and len(self._running) < self._max_running:
            request = self._waiting.popleft()
            placed = self._place(request)
            if not placed:
                held.append(request)
            if placed is None:
                break
        self._waiting.extendleft(reversed(held))

    def _place(self, request: Request) -> bool | None:
        """Give a request its slot; `False` if it waits for its prefix, `None` if there is no room."""
        if not self.cache.adopt(request):
            shared = tuple(request.ids[: min(request.shared_prefix, len(request.ids) - 1)])
            prefix = self.cache.find_prefix(shared) if shared else None
            if shared and prefix is None and self._begin_prefix(shared):
                return False
            if prefix is not None and not prefix.ready:
                return False
            if not self._take(request, prefix):
                return None
        request.keys_version = self.version
        if not request.logprobs:
            request.cached_tokens = request.computed
        self._running.append(request)
        return True

    def _take(self, request: Request, prefix: Prefix | None) -> bool:
        """Take a slot; where not even an idle engine has room for the prefix too, do without it."""
        if prefix is not None:
            self.cache.join_prefix(request, prefix)
            request.computed = request.offset
            if self.cache.take(request, request.pending + 1):
                return True
            self.cache.leave_prefix(request)
            request.computed = 0
            if self._running:
                return False
        return self.cache.take(request, request.pending + 1)

    def _begin_prefix(self, ids: tuple[int, ...]) -> bool:
        """Start to compute a prefix, if there is room."""
        prefix = Prefix(ids=ids, users=1)
        request = Request(id="", ids=list(ids), params=SamplingParams(), limit=0, finish=lambda _: None, fills=prefix)
        self.cache.add_prefix(prefix)
        if not self.cache.take(request, len(ids)):
            self.cache.remove_prefix(prefix)
            return False
        self._running.append(request)
        return True

    def _choose(self) -> tuple[list[Request], list[tuple[Request, int]]]:
        """Choose what to run in this step: all requests that decode, and prompts as far as the budget goes."""
        decoding = [request for request in self._running if request.pending == 1]
        budget = self._max_step_tokens - len(decoding)
        joining: list[tuple[Request, int]] = []
        for request in self._running:
            n = min(request.pending, budget)
            if request.pending > 1 and n > 0:
                joining.append((request, n))
                budget -= n
        longest = max([r.own_tokens + 1 for r in decoding] + [r.own_tokens + n for r, n in joining])
        if not self.cache.reserve(longest):
            self._retract(self._running[-1:])
            return self._choose() if self._running else ([], [])
        if not self.cache.store.ragged and _sparse(decoding):
            self.cache.compact(decoding)
        return sorted(decoding, key=lambda request: request.slot), joining


def _sparse(decoding: list[Request]) -> bool:
    """Tell whether attention over a range of slots would mostly be wasted."""
    last = max((request.slot for request in decoding), default=0)
    return last >= SPARSE * max(len(decoding), MIN_SLOTS)


def _draw(requests: list[Request]) -> Draw:
    params = [request.params for request in requests]
    return Draw(
        temperatures=np.array([p.temperature for p in params], dtype=np.float32),
        seeds=as_seeds([p.seed for p in params]),
        positions=np.array([len(request.logprobs) for request in requests], dtype=np.uint64),
        top_ks=np.array([p.top_k for p in params], dtype=np.int64),
        top_ps=np.array([p.top_p for p in params], dtype=np.float64),
    )
