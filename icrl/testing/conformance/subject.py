"""What the checks need to know of an engine, and what they share."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any
from unittest import SkipTest

from icrl.runtime.engines.protocol import Engine
from icrl.tokenizer import Tokenizer
from icrl.trajectory import Generation
from icrl.types import SamplingParams

__all__ = ["Check", "OpenSubject", "Subject", "ensure", "greedy", "need", "settle", "under_way"]

PATIENCE_S = 60.0
"""Seconds after which an engine that ought to have done something has not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """An engine under examination, with what has to be known about its model."""

    engine: Engine
    """The engine; checks may close it."""
    tokenizer: Tokenizer
    """The model's."""
    prompt: Sequence[int]
    """At temperature 0 the model goes on from here for `long_tokens` tokens without an end token."""
    ending: Sequence[int]
    """At temperature 0 the model ends its turn from here, within `long_tokens` tokens."""
    long_tokens: int = 200
    """Tokens of a request that takes long enough to be interrupted."""
    exact: bool = True
    """Whether greedy replies are the same alone, in company and when continued, as in float32."""
    logprobs: Callable[[Sequence[int], Sequence[int], float], Sequence[float]] | None = None
    """Log-probabilities of sampled ids after a prompt at a temperature, computed in one go by other means."""
    tolerance: float = 1e-4
    """How far these may be from the engine's."""
    weights: Callable[[], Iterable[tuple[str, Any]]] | None = None
    """The weights that the model has, for an engine that can be trained."""
    keeps_version: bool = False
    """Whether requests keep the weights that they were sent under, as where each version is an adapter of its own."""
    live: Callable[[], Awaitable[int]] | None = None
    """Counts the requests that whatever computes is busy with; for an engine that is asked itself, `None`."""


OpenSubject = Callable[[], AbstractAsyncContextManager[Subject]]
"""Opens an engine of its own for a check, and closes it afterwards."""

Check = Callable[[OpenSubject], Awaitable[None]]
"""Examines one law; raises `AssertionError` where it is broken, and `unittest.SkipTest` where it does not apply."""


def ensure(condition: bool, law: str) -> None:
    """Raise an `AssertionError` unless the condition holds; unlike `assert`, also in optimised code."""
    if not condition:
        raise AssertionError(law)


def need(condition: object, reason: str) -> None:
    """Skip the check unless it applies."""
    if not condition:
        raise SkipTest(reason)


async def greedy(
    subject: Subject, ids: Sequence[int], *, max_tokens: int, request_id: str = "r", **more: Any
) -> Generation:
    """Sample at temperature 0; `stop` goes to the parameters, the rest to the engine."""
    params = SamplingParams(temperature=0.0, max_tokens=max_tokens, stop=more.pop("stop", ()))
    return await subject.engine.generate(ids, params, request_id=request_id, **more)


async def under_way(subject: Subject, *, request_id: str = "long") -> asyncio.Task[Generation]:
    """Start a long request and return it when its first tokens are there."""
    need("deltas" in subject.engine.info.capabilities, "the engine does not say when tokens arrive")
    some, seen = asyncio.Event(), [0]

    def on_delta(new: Sequence[int]) -> None:
        seen[0] += len(new)
        if seen[0] >= 3:
            some.set()

    task = asyncio.create_task(
        greedy(subject, subject.prompt, max_tokens=subject.long_tokens, request_id=request_id, on_delta=on_delta)
    )
    waiting = asyncio.create_task(some.wait())
    await asyncio.wait({task, waiting}, timeout=PATIENCE_S, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if task.done():
        reply = await task
        raise AssertionError(f"{len(reply.ids)} tokens were over before they could be interrupted: raise long_tokens")
    return task


async def settle(subject: Subject) -> None:
    """Wait until nothing is computed any more."""
    if subject.live is None:
        return
    async with asyncio.timeout(PATIENCE_S):
        while await subject.live():  # noqa: ASYNC110  (what is asked may be a server)
            await asyncio.sleep(0.01)
