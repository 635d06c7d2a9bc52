"""One request of a pool: where it is, what has arrived, and how it is sent away or ended."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from icrl.errors import EngineError
from icrl.runtime.engines.member import Member
from icrl.runtime.engines.pool_config import PoolConfig
from icrl.runtime.engines.protocol import OnDelta
from icrl.runtime.engines.resumption import Received, SeamWatch
from icrl.tokenizer import Tokenizer
from icrl.trajectory import FinishReason, Generation
from icrl.types import SamplingParams

__all__ = ["PoolRequest"]


class PoolRequest:
    """One request, on however many servers one after the other.

    Args:
        request_id: Its name.
        prompt: What was asked for.
        params: How to sample.
        session: Its session.
        shared_prefix: Leading ids that others share.
        on_delta: Hears new ids.
        config: How long to wait.
        tokenizer: Finds stop strings.
    """

    __slots__ = (
        "_attempts",
        "_config",
        "_errors",
        "_fence",
        "_heard",
        "_inner",
        "_member",
        "_on_delta",
        "_received",
        "_started",
        "_tasks",
        "_tokenizer",
        "_told",
        "aborted",
        "failures",
        "moved",
        "params",
        "progress",
        "prompt",
        "request_id",
        "session",
        "shared_prefix",
    )

    def __init__(
        self,
        request_id: str,
        prompt: Sequence[int],
        params: SamplingParams,
        *,
        session: str | None,
        shared_prefix: int,
        on_delta: OnDelta | None,
        config: PoolConfig,
        tokenizer: Tokenizer,
    ) -> None:
        self.request_id = request_id
        self.prompt = prompt
        self.params = params
        self.session = session
        self.shared_prefix = shared_prefix
        self.aborted = asyncio.Event()
        """Whether it is to end with what it has."""
        self.moved = asyncio.Event()
        """Set when the pool's servers change while it waits for one."""
        self.failures: Counter[int] = Counter()
        """How often it failed where, since the last token."""
        self._on_delta = on_delta
        self._told = self._heard = 0
        self._config = config
        self._tokenizer = tokenizer
        self._received: Received | None = None
        self._started = self.progress = time.monotonic()
        self._attempts = 0
        self._errors: list[str] = []
        self._member: Member | None = None
        self._inner = request_id
        self._fence: asyncio.Timeout | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def resumed(self) -> bool:
        """Whether something has arrived that another attempt has to go on with."""
        return self._received is not None

    @property
    def watched(self) -> bool:
        """Whether somebody hears new ids, which cannot be taken back then."""
        return self._on_delta is not None

    @property
    def patience_s(self) -> float:
        """Seconds for which it may go on failing, or waiting for a server, unless a token arrives."""
        return self.progress + self._config.give_up_s - time.monotonic()

    @property
    def last_error(self) -> str:
        """What happened last; empty where nothing failed."""
        return self._errors[-1] if self._errors else ""

    async def ask(self, member: Member) -> Generation:
        """Let one server sample what is missing.

        Raises:
            TimeoutError: It was sent away, and the server did not hand over what it has.
            EngineError: As the server's `generate`.
        """
        ids, params, tell = self.prompt, self.params, self._hear if self.watched else None
        self._heard = 0
        if self._received is not None:
            ids, params = [*ids, *self._received.ids], self._received.rest
            self._hear(self._received.ids)
            tell = SeamWatch(self._received, tell, self._cut)
        # A server may not know yet that it lost the last attempt, and would refuse its name.
        self._inner = f"{self.request_id}~{self._attempts}" if self._attempts else self.request_id
        self._attempts += 1
        self._member = member
        member.requests.add(self)
        member.in_flight += 1
        try:
            async with asyncio.timeout(None) as self._fence:
                return await member.server.generate(
                    ids,
                    params,
                    request_id=self._inner,
                    session=self.session,
                    shared_prefix=self.shared_prefix,
                    on_delta=tell,
                )
        finally:
            member.in_flight -= 1
            member.requests.discard(self)
            self._member = self._fence = None

    def add(self, part: Generation, *, version: int) -> None:
        """Take what a server sampled; new tokens renew the patience with everything that fails."""
        if part.ids:
            if self._received is None:
                self._received = Received(self.params, self._tokenizer)
            self._received.add(part, version=version)
            self.progress = time.monotonic()
            self.failures.clear()

    def note(self, member: Member, error: EngineError, *, brought: bool) -> None:
        """Remember a failure; one that brought tokens does not count, and patience begins with the first that does."""
        if not brought:
            if not self.failures:
                self.progress = time.monotonic()
            self.failures[member.index] += 1
        self._errors[:] = [str(error)]

    def wait_s(self) -> float:
        """Draw the wait before the next attempt; none where the last one brought tokens."""
        failed = self.failures.total()
        if not failed:
            return 0.0
        bound_s = min(self._config.longest_wait_s, self._config.first_wait_s * 2.0 ** min(failed - 1, 30))
        return random.uniform(0.0, bound_s)

    async def unless_aborted(self, work: Coroutine[Any, Any, None]) -> None:
        """Wait until something is done, or until it is aborted."""
        waits = asyncio.ensure_future(work), asyncio.ensure_future(self.aborted.wait())
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def rest(self, wait_s: float) -> None:
        """Wait, unless it is aborted."""
        with suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self.aborted.wait()

    def leave(self, why: str) -> None:
        """Leave its server with what that one has; whatever it returns counts as a part."""
        self._errors[:] = [why]
        self._cut()

    async def abort(self) -> None:
        """End with what there is, wherever it is now."""
        self.aborted.set()
        self.moved.set()
        member = self._member
        if member is not None:
            self._let_go()
            await _abort(member, self._inner)

    async def aclose(self) -> None:
        """Wait for what was sent on its behalf."""
        if self._tasks:
            await asyncio.gather(*self._tasks)

    def ended(self, *, context_limit: int) -> Generation | None:
        """Return the whole where what has arrived is the whole, though no server said so."""
        if self._received is None:
            return None
        ending = self._received.ending()
        if ending is None and len(self.prompt) + len(self._received.ids) >= context_limit:
            ending = len(self._received.ids), "length"
        return None if ending is None else self._whole(self._received, *ending)

    def whole(self, reason: FinishReason) -> Generation:
        """Return everything that arrived, as if one server had sampled it."""
        received = self._received or Received(self.params, self._tokenizer)
        return self._whole(received, len(received.ids), reason)

    def timed(self, part: Generation) -> Generation:
        """Return what one server sampled; where others had failed before, with the time that this took in all."""
        return part if self._attempts == 1 else replace(part, wall_s=time.monotonic() - self._started)

    def _whole(self, received: Received, length: int, reason: FinishReason) -> Generation:
        wall_s = time.monotonic() - self._started
        self._heard = 0
        self._hear(received.ids[:length])
        return received.generation(length, reason, prompt_tokens=len(self.prompt), wall_s=wall_s)

    def _hear(self, ids: Sequence[int]) -> None:
        """Pass new ids on, each position once: a server may fail with less than it had told, or with more."""
        new, self._heard = ids[max(0, self._told - self._heard) :], self._heard + len(ids)
        if new and self._on_delta is not None:
            self._told = self._heard
            self._on_delta(tuple(new))

    def _cut(self) -> None:
        """Abort it at its server, without waiting here."""
        if self._member is not None:
            self._let_go()
            task = asyncio.get_running_loop().create_task(_abort(self._member, self._inner))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _let_go(self) -> None:
        """Give the server some time to hand over what it has."""
        if self._fence is not None and self._fence.when() is None:
            self._fence.reschedule(asyncio.get_running_loop().time() + self._config.abort_grace_s)


async def _abort(member: Member, request_id: str) -> None:
    with suppress(EngineError):  # then it does not answer the request either, and the fence ends it
        await member.server.abort(request_id)
