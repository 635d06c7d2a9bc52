"""An engine that says what it is told."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from icrl.errors import EngineError
from icrl.runtime.engines.protocol import EngineInfo, OnDelta, PauseMode, check_request
from icrl.testing.script import Reply, Script, Speaker, fake_logprob
from icrl.testing.tokenizer import ByteTokenizer
from icrl.tokenizer import Tokenizer
from icrl.trajectory import Generation, VersionSpan
from icrl.types import SamplingParams

__all__ = ["Request", "ScriptedEngine"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One call of `ScriptedEngine.generate`."""

    ids: tuple[int, ...]
    """The sequence it was given."""
    params: SamplingParams
    """How to sample."""
    request_id: str
    """Its name."""
    session: str | None
    """Its session."""
    shared_prefix: int
    """Leading ids that others share."""


@dataclass(slots=True, eq=False)
class _Live:
    """A request that is being answered."""

    aborted: asyncio.Event = field(default_factory=asyncio.Event)
    ids: list[int] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)


class ScriptedEngine:
    """An engine that says what it is told; also a `WeightSink`, for which weights are only a number.

    A text reply ends with the end token; a reply of ids is taken as it is. Either ends where a model's would: at an
    end token, at the token that completes a stop string, at the request's budget. Log-probabilities are
    `fake_logprob`.

    Args:
        replies: What to say: a function of the ids so far, or the replies of a session's turns in order (requests
            without a session share one).
        tokenizer: Encodes replies; also what an agent will use.
        latency_s: Seconds per call, spread evenly over its tokens.
        context_limit: Tokens of prompt plus generation.
        weight_version: Version at the start.

    Example:
        >>> engine = ScriptedEngine(["<answer> 42 </answer>"])
        >>> prompt = engine.tokenizer.encode("What is six times seven?")
        >>> reply = asyncio.run(engine.generate(prompt, SamplingParams(), request_id="r"))
        >>> engine.tokenizer.decode(reply.ids), reply.finish_reason
        ('<answer> 42 </answer>', 'eos')
        >>> engine.requests[0].ids == tuple(prompt)
        True
    """

    def __init__(
        self,
        replies: Script | Sequence[Reply],
        *,
        tokenizer: Tokenizer | None = None,
        latency_s: float = 0.0,
        context_limit: int = 32_768,
        weight_version: int = 0,
    ) -> None:
        self._latency_s = latency_s
        self._context_limit = context_limit
        self._weight_version = weight_version
        self._live: dict[str, _Live] = {}
        self._running = asyncio.Event()
        self._running.set()
        self.tokenizer: Tokenizer = tokenizer or ByteTokenizer()
        """Encodes replies."""
        self._speaker = Speaker(replies, self.tokenizer, name="scripted")
        self.requests: list[Request] = []
        """Everything it was asked, in order."""
        self.closed = False
        """Whether `aclose` was called."""

    @property
    def info(self) -> EngineInfo:
        """What the engine can do."""
        return EngineInfo(
            name="scripted",
            vocab_size=self.tokenizer.vocab_size,
            context_limit=self._context_limit,
            weight_version=self._weight_version,
            capabilities=frozenset({"logprobs", "abort", "deltas", "weights"}),
        )

    @property
    def live(self) -> frozenset[str]:
        """Ids of the requests that are being answered now."""
        return frozenset(self._live)

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
        """Say the next reply.

        Raises:
            EngineError: The request is out of bounds or its id is taken, the engine is closed, or the script has
                nothing left to say.
        """
        started = time.monotonic()
        prompt = tuple(ids)
        self._check(prompt, params, request_id)
        self.requests.append(
            Request(ids=prompt, params=params, request_id=request_id, session=session, shared_prefix=shared_prefix)
        )
        budget = min(params.max_tokens, self._context_limit - len(prompt))
        said = self._speaker.reply(prompt, budget=budget, stop=params.stop, session=session)
        live = self._live[request_id] = _Live()
        try:
            await self._speak(live, said.ids, on_delta)
        finally:
            del self._live[request_id]
        return Generation(
            ids=tuple(live.ids),
            logprobs=tuple(fake_logprob(token, len(prompt) + i) for i, token in enumerate(live.ids)),
            finish_reason=said.reason if len(live.ids) == len(said.ids) else "abort",
            versions=_spans(live.versions),
            prompt_tokens=len(prompt),
            wall_s=time.monotonic() - started,
        )

    async def abort(self, request_id: str) -> None:
        """Make the pending request return what it has."""
        if request_id in self._live:
            self._live[request_id].aborted.set()

    async def aclose(self) -> None:
        """Abort everything and refuse further requests."""
        self.closed = True
        for request_id in self._live:
            await self.abort(request_id)

    async def pause(self, mode: PauseMode = "in_place") -> None:
        """Stop speaking; `abort` ends the pending requests with what they have."""
        self._running.clear()
        if mode == "abort":
            for request_id in self._live:
                await self.abort(request_id)

    async def update(self, weights: Iterable[tuple[str, Any]], version: int) -> None:
        """Consume the weights and take their version; tokens that follow carry it."""
        for _ in weights:
            pass
        self._weight_version = version

    async def resume(self) -> None:
        """Speak again."""
        self._running.set()

    def _check(self, prompt: tuple[int, ...], params: SamplingParams, request_id: str) -> None:
        check_request(self.info, prompt)
        if self.closed:
            raise EngineError("is closed", engine="scripted")
        if request_id in self._live:
            raise EngineError(f"request id {request_id!r} is in use", engine="scripted")

    async def _speak(self, live: _Live, reply: list[int], on_delta: OnDelta | None) -> None:
        step_s = self._latency_s / max(1, len(reply))
        await asyncio.sleep(0)
        for token in reply:
            if step_s:
                await _pass(live.aborted, step_s)
            if not self._running.is_set():
                await _first(self._running, live.aborted)
            if live.aborted.is_set():
                return
            live.ids.append(token)
            live.versions.append(self._weight_version)
            if on_delta is not None:
                on_delta((token,))


def _spans(versions: list[int]) -> tuple[VersionSpan, ...]:
    """Join neighbours of one version."""
    bounds = [i for i, version in enumerate(versions) if i == 0 or version != versions[i - 1]]
    ends = [*bounds[1:], len(versions)]
    return tuple(VersionSpan(version=versions[a], start=a, end=b) for a, b in zip(bounds, ends, strict=False))


async def _pass(event: asyncio.Event, timeout_s: float) -> None:
    """Wait until the time is over or the event happens."""
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        return


async def _first(*events: asyncio.Event) -> None:
    """Wait until one of the events happens."""
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
