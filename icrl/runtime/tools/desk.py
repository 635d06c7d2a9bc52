"""One tool with everything that stands in front of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

from icrl.errors import ConfigError, SandboxError, ToolError, ToolTimeout
from icrl.runtime.tools.accounts import Account
from icrl.runtime.tools.cache import ToolCache
from icrl.runtime.tools.context import CALL, CallContext
from icrl.runtime.tools.flights import Flights, Late
from icrl.runtime.tools.gate import Gate
from icrl.runtime.tools.keys import CallKey, canonical
from icrl.runtime.tools.patience import patience
from icrl.runtime.tools.rate import Rate
from icrl.runtime.tools.retry import retrying
from icrl.runtime.tools.tool import Tool

__all__ = ["Desk"]

CANCEL_GRACE_S = 0.5
"""How long a cancelled tool may take to clean up before it is left behind."""


class Desk:
    """Takes the calls of one tool: from the cache, from a run in flight, or by running the tool when there is room.

    The order is cache, shared run, retries, slot, rate, run. A tool pays only for what its policy asks for.

    Args:
        tool: The tool.
        cache: Answers of repeatable tools; shared with other desks.

    Raises:
        ConfigError: The tool is repeatable and does not say what decides its answers.
    """

    def __init__(self, tool: Tool, *, cache: ToolCache | None) -> None:
        policy = tool.policy
        if policy.repeatable and not isinstance(getattr(tool, "fingerprint", None), str):
            raise ConfigError(
                f"tools: {tool.spec.name!r} is repeatable, so it needs a `fingerprint` that names what decides its "
                "answers besides the arguments; an empty string says that nothing does"
            )
        self.tool = tool
        self.account = Account()
        self._policy = policy
        self._cache = cache
        self._gate = Gate(slots=policy.max_concurrency, max_queue=policy.max_queue)
        self._rate: Rate | None = None
        if policy.calls_per_s is not None:
            self._rate = Rate(calls_per_s=policy.calls_per_s, max_queue=policy.max_queue)
        self._flights = Flights(grace_s=2 * CANCEL_GRACE_S) if policy.repeatable else None
        self._left_behind: set[asyncio.Task[str]] = set()

    @property
    def fingerprint(self) -> str:
        """What decides the tool's answers besides the arguments, as far as it says."""
        return str(getattr(self.tool, "fingerprint", ""))

    @property
    def left_behind(self) -> set[asyncio.Task[str]]:
        """Cancelled work that has not ended."""
        return self._left_behind if self._flights is None else self._left_behind | self._flights.ending

    async def answer(self, arguments: Mapping[str, Any], *, deadline_s: float, session: str) -> str:
        """Answer a call.

        Raises:
            ToolTimeout: There was no answer in time.
            ToolError: The tool failed, or has no room; besides, whatever else the tool raises.
        """
        timeout_s = min(self._policy.timeout_s, deadline_s)
        if timeout_s <= 0:
            raise ToolTimeout(f"no time was left to run {self.tool.spec.name}")
        if self._flights is not None:
            written = canonical(arguments)
            if written is not None:
                key = CallKey(self.tool.spec.name, self.fingerprint, written)
                return await self._shared(self._flights, key, arguments, deadline_s)
        return await self._work(arguments, CallContext(session=session, deadline=time.monotonic() + timeout_s))

    async def _shared(self, flights: Flights, key: CallKey, arguments: Mapping[str, Any], deadline_s: float) -> str:
        """Answer from the cache, or from one run for everybody who asks the same."""
        if self._cache is not None:
            cached = self._cache.get(key, ttl_s=self._policy.cache_ttl_s)
            if cached is not None:
                self.account.cache_hits += 1
                return cached
        self.account.shared += flights.has(key)
        # The run ends by the tool's timeout by itself, for all. One caller's nearer deadline is its own affair.
        timeout_s = min(deadline_s, self._policy.timeout_s + 3 * CANCEL_GRACE_S)
        try:
            return await flights.join(key, partial(self._fetch, key, arguments), timeout_s=timeout_s)
        except Late:
            raise self._timeout(timeout_s) from None

    async def _fetch(self, key: CallKey, arguments: Mapping[str, Any]) -> str:
        # The run belongs to no session, as it may answer several.
        context = CallContext(deadline=time.monotonic() + self._policy.timeout_s)
        if self._cache is not None:
            cached = await self._cache.find(key, ttl_s=self._policy.cache_ttl_s)
            if cached is not None:
                self.account.cache_hits += 1
                return cached
        text = await self._work(arguments, context)
        if self._cache is not None and key.fingerprint == self.fingerprint:
            self._cache.put(key, text)
        return text

    async def _work(self, arguments: Mapping[str, Any], context: CallContext) -> str:
        if not self._policy.retries:
            return await self._once(arguments, context)
        return await retrying(
            partial(self._once, arguments, context),
            retries=self._policy.retries,
            deadline=context.deadline,
            on_retry=self._count_retry,
        )

    def _count_retry(self) -> None:
        self.account.retries += 1

    async def _once(self, arguments: Mapping[str, Any], context: CallContext) -> str:
        """Wait for room, and run the tool."""
        if self._rate is None and self._gate.try_enter():
            return await self._run(arguments, context)
        waiting_since = time.monotonic()
        try:
            await self._enter(context)
        except TimeoutError:
            within_s = context.deadline - waiting_since
            raise ToolTimeout(f"{self.tool.spec.name} had no free slot within {_shown(within_s)}") from None
        finally:
            self.account.waited_s += time.monotonic() - waiting_since
        return await self._run(arguments, context)

    async def _enter(self, context: CallContext) -> None:
        if not self._gate.try_enter():
            await self._gate.enter(context.remaining_s)
        if self._rate is None:
            return
        try:
            await self._rate.turn(context.remaining_s)
        except BaseException:
            self._gate.leave()
            raise

    async def _run(self, arguments: Mapping[str, Any], context: CallContext) -> str:
        """Run the tool as a task, so that one which ignores its cancellation cannot hold up the caller."""
        started = time.monotonic()
        task = self._start(arguments, context)
        try:
            await patience(task, context.deadline - started)
        except asyncio.CancelledError:
            await self._cancel(task)
            raise
        finally:
            self.account.run_s += time.monotonic() - started
        if task.done():
            return _result(task)
        await self._cancel(task)
        if task.done() and not task.cancelled() and isinstance(task.exception(), SandboxError):
            return task.result()
        raise self._timeout(context.deadline - started, went_on=not task.done())

    def _start(self, arguments: Mapping[str, Any], context: CallContext) -> asyncio.Task[str]:
        self.account.runs += 1
        outer = CALL.set(context)
        try:
            task: asyncio.Task[str] = asyncio.ensure_future(self.tool(arguments))
        except BaseException:
            self._gate.leave()
            raise
        finally:
            CALL.reset(outer)
        # The slot is held until the work ends, not until nobody waits for it any more.
        task.add_done_callback(self._leave)
        return task

    def _leave(self, task: asyncio.Task[str]) -> None:
        self._gate.leave()
        if not task.cancelled():
            # Marks it as seen: the loop would complain about the exception of a task that was left behind.
            task.exception()

    async def _cancel(self, task: asyncio.Task[str]) -> None:
        task.cancel()
        self._left_behind.add(task)
        task.add_done_callback(self._left_behind.discard)
        await patience(task, CANCEL_GRACE_S)

    def _timeout(self, within_s: float, *, went_on: bool = False) -> ToolTimeout:
        note = ", and went on after it was cancelled" if went_on else ""
        return ToolTimeout(f"{self.tool.spec.name} gave no answer within {_shown(within_s)}{note}")


def _result(task: asyncio.Task[str]) -> str:
    try:
        text = task.result()
    except asyncio.CancelledError:
        # Nobody cancelled the task from here, so the tool did it to itself.
        raise ToolError("the tool cancelled itself") from None
    if not isinstance(text, str):
        raise ToolError(f"the tool returned {type(text).__name__}, which is not text")
    return text


def _shown(seconds: float) -> str:
    """Write a time that was measured as the time that was set."""
    return f"{float(f'{seconds:.2g}'):g} s"
