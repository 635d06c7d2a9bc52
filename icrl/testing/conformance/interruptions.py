"""Requests that do not run to their end: aborted, cancelled, doubled, closed under."""

from __future__ import annotations

import asyncio

from icrl.errors import EngineError
from icrl.testing.conformance.subject import PATIENCE_S, OpenSubject, Subject, ensure, greedy, need, settle, under_way
from icrl.trajectory import Generation

__all__ = [
    "aborting_returns_what_there_is",
    "cancelling_leaves_nothing",
    "closing_returns_what_there_is",
    "names_are_unique",
]


async def aborting_returns_what_there_is(open_subject: OpenSubject) -> None:
    """An aborted request returns a part of what it would have said; names that are not known are ignored."""
    async with open_subject() as subject:
        need("abort" in subject.engine.info.capabilities, "the engine cannot abort")
        task = await under_way(subject)
        await subject.engine.abort("nobody")
        await subject.engine.abort("long")
        await _is_partial(subject, await asyncio.wait_for(task, PATIENCE_S))
        await settle(subject)


async def _is_partial(subject: Subject, reply: Generation) -> None:
    count = len(reply.ids)
    ensure(reply.finish_reason == "abort", f"finish reason is {reply.finish_reason!r}")
    ensure(3 <= count < subject.long_tokens, f"{count} of {subject.long_tokens} tokens were returned")
    ensure(len(reply.logprobs) == count, f"{len(reply.logprobs)} logprobs for {count} tokens")
    covered = sum(span.end - span.start for span in reply.versions)
    ensure(covered == count, f"versions {reply.versions} do not cover {count} tokens")
    if subject.exact:
        whole = await greedy(subject, subject.prompt, max_tokens=count, request_id="whole")
        ensure(reply.ids == whole.ids, f"{reply.ids} is not what would have been said: {whole.ids}")


async def cancelling_leaves_nothing(open_subject: OpenSubject) -> None:
    """A cancelled request is gone: nothing computes for it, and its name is free."""
    async with open_subject() as subject:
        task = await under_way(subject)
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            pass
        else:
            raise AssertionError("the cancelled request returned")
        reply = await greedy(subject, subject.prompt, max_tokens=3, request_id="long")
        ensure(len(reply.ids) == 3, f"after a cancellation: {reply}")
        await settle(subject)


async def names_are_unique(open_subject: OpenSubject) -> None:
    """A name that is in use is refused, and whoever has it is not disturbed."""
    async with open_subject() as subject:
        task = await under_way(subject)
        try:
            await greedy(subject, subject.prompt, max_tokens=3, request_id="long")
        except EngineError:
            pass
        else:
            raise AssertionError("two live requests have one name")
        reply = await asyncio.wait_for(task, PATIENCE_S)
        ensure(len(reply.ids) == subject.long_tokens, f"the first request was disturbed: {len(reply.ids)} tokens")


async def closing_returns_what_there_is(open_subject: OpenSubject) -> None:
    """Closing ends pending requests as aborted; closing twice is nothing."""
    async with open_subject() as subject:
        task = await under_way(subject)
        await subject.engine.aclose()
        reply = await asyncio.wait_for(task, PATIENCE_S)
        ensure(reply.finish_reason == "abort", f"finish reason is {reply.finish_reason!r}")
        ensure(len(reply.logprobs) == len(reply.ids) < subject.long_tokens, f"{len(reply.ids)} tokens were returned")
        await subject.engine.aclose()
        await settle(subject)
