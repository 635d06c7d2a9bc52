"""Weights that change under running requests."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from icrl.runtime.engines.protocol import PauseMode, WeightSink
from icrl.testing.conformance.subject import PATIENCE_S, OpenSubject, Subject, ensure, greedy, need, under_way

__all__ = ["pausing_can_abort", "updates_drop_what_is_cached", "updates_split_the_versions"]


def _sink(subject: Subject) -> WeightSink:
    need("weights" in subject.engine.info.capabilities, "the engine's weights cannot be replaced")
    need(subject.weights is not None, "there are no weights to send")
    return cast("WeightSink", subject.engine)


async def _update(subject: Subject, sink: WeightSink) -> int:
    version = subject.engine.info.weight_version + 1
    weights: Any = subject.weights() if subject.weights else ()
    await sink.update(weights, version)
    return version


async def updates_split_the_versions(open_subject: OpenSubject) -> None:
    """A request that lives through an update says which tokens were sampled before and after it.

    Where each version is an adapter of its own, all of them were sampled under the one from before.
    """
    async with open_subject() as subject:
        sink = _sink(subject)
        modes: tuple[PauseMode, ...] = ("in_place", "retract")
        for mode in modes:
            old, task = subject.engine.info.weight_version, await under_way(subject)
            await sink.pause(mode)
            new = await _update(subject, sink)
            await sink.resume()
            reply = await asyncio.wait_for(task, PATIENCE_S)
            expected = [old] if subject.keeps_version else [old, new]
            ensure([s.version for s in reply.versions] == expected, f"{mode}: {reply.versions} for {old} and {new}")
            ends = [0, *(span.end for span in reply.versions)]
            ensure([s.start for s in reply.versions] == ends[:-1], f"{mode}: {reply.versions} leave gaps")
            ensure(ends == sorted({*ends}), f"{mode}: {reply.versions} are empty in parts")
            ensure(ends[-1] == len(reply.ids) == subject.long_tokens, f"{mode}: {len(reply.ids)} tokens")
            ensure(subject.engine.info.weight_version == new, f"{mode}: info says {subject.engine.info.weight_version}")


async def pausing_can_abort(open_subject: OpenSubject) -> None:
    """Pausing with `abort` returns partials at once; requests that come meanwhile wait until it goes on."""
    async with open_subject() as subject:
        sink, task = _sink(subject), await under_way(subject)
        await sink.pause("abort")
        reply = await asyncio.wait_for(task, PATIENCE_S)
        ensure(reply.finish_reason == "abort", f"finish reason is {reply.finish_reason!r}")
        late = asyncio.create_task(greedy(subject, subject.prompt, max_tokens=3, request_id="late"))
        await asyncio.sleep(0.05)
        ensure(not late.done(), "a paused engine answers")
        old = subject.engine.info.weight_version
        new = await _update(subject, sink)
        version = old if subject.keeps_version else new
        await sink.resume()
        spans = (await asyncio.wait_for(late, PATIENCE_S)).versions
        ensure([span.version for span in spans] == [version], f"{spans} after the update to {version}")


async def updates_drop_what_is_cached(open_subject: OpenSubject) -> None:
    """Keys and values of old weights are not used under new ones."""
    async with open_subject() as subject:
        sink = _sink(subject)
        need("prefix_cache" in subject.engine.info.capabilities, "the engine reuses nothing")
        await greedy(subject, subject.prompt, max_tokens=8, session="s")
        again = await greedy(subject, subject.prompt, max_tokens=8, session="s")
        ensure(again.cached_tokens > 0, "nothing was cached to begin with")
        await sink.pause("retract")
        await _update(subject, sink)
        await sink.resume()
        reply = await greedy(subject, subject.prompt, max_tokens=8, session="s")
        ensure(reply.cached_tokens == 0, f"{reply.cached_tokens} tokens of the old weights were reused")
        ensure(not subject.exact or reply.ids == again.ids, "the same weights say something else")
