"""The agent behind the server: who may use it, how it is replaced, and how it ends.

starting ──start──> ready ──drain──> draining ──aclose──> closed
                      └─reload─┘
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Literal

from icrl.errors import ConfigError, DataError, ToolBusy
from icrl.events import Event
from icrl.runtime.agent import Agent
from icrl.runtime.run import Run
from icrl.runtime.tools.gate import Gate
from icrl.serve.ask import Ask
from icrl.serve.config import AdmissionConfig
from icrl.serve.problem import Problem, invalid
from icrl.trajectory import StopReason, Trajectory
from icrl.types import Limits, SamplingParams

__all__ = ["Lease", "Service", "State", "Watcher"]

State = Literal["starting", "ready", "draining", "closed"]
"""Where a service is in its life."""

Watcher = Callable[[str], Callable[[Event], None]]
"""Asked once for every run, by its trajectory id, for something that hears its events."""

WARM_UP = SamplingParams(temperature=0.0, max_tokens=1)
WARM_UP_TIMEOUT_S = 600.0
BUSY_RETRY_S = 1.0
_LOG = logging.getLogger("icrl.serve")


@dataclass(frozen=True, slots=True, eq=False)
class Lease:
    """The right to run requests on the agent that was current when it was given."""

    agent: Agent
    """An open agent; it stays open until the lease ends, also when the service has moved on to another."""
    _service: Service

    def prepare(self, ask: Ask, emit: Callable[[Event], None] | None = None) -> Run:
        """Prepare a run for what a client asks.

        Raises:
            Problem: The conversation or a limit does not fit the model.
        """
        run_id = uuid.uuid4().hex
        own = self.agent.model.limits
        limits = replace(
            own,
            max_tokens=min(own.max_tokens, ask.max_tokens or own.max_tokens),
            deadline_s=min(own.deadline_s, self._service.request_timeout_s),
        )
        try:
            return self.agent.start(
                ask.messages,
                seed=ask.seed,
                emit=self._hearing(run_id, emit),
                sampling=replace(ask.sampling, max_tokens=limits.max_tokens),
                limits=limits,
                trajectory_id=run_id,
            )
        except (ConfigError, DataError) as error:
            raise invalid("messages", str(error)) from error

    def _hearing(self, run_id: str, emit: Callable[[Event], None] | None) -> Callable[[Event], None]:
        listeners = [watch(run_id) for watch in self._service.watchers]
        listeners += [] if emit is None else [emit]

        def hear(event: Event) -> None:
            for listener in listeners:
                listener(event)

        return hear

    async def execute(self, run: Run) -> Trajectory:
        """Work on a prepared run to its end; draining may end it early."""
        live = self._service.live
        live[run.id] = run
        try:
            return await run.execute()
        finally:
            del live[run.id]


class Service:
    """One agent for many requests.

    Args:
        open_agent: Makes the agent, and makes it anew at every reload.
        admission: How much may happen at once.
    """

    def __init__(self, open_agent: Callable[[], Agent], admission: AdmissionConfig) -> None:
        self._open_agent = open_agent
        self._admission = admission
        self._gate = Gate(slots=admission.max_running, max_queue=admission.max_waiting)
        self._callers: Counter[str] = Counter()
        self._agent: Agent | None = None
        self._reloading = asyncio.Lock()
        self._idle = asyncio.Event()
        self._idle.set()
        self.state: State = "starting"
        """Where it is in its life."""
        self.watchers: list[Watcher] = []
        """Metrics, traces and logs: whoever wants to hear every run."""
        self.live: dict[str, Run] = {}
        """Runs that are being worked on, by trajectory id."""
        self.reloads = 0
        """How often the model was replaced."""

    @property
    def request_timeout_s(self) -> float:
        """Seconds that one answer may take."""
        return self._admission.request_timeout_s

    @property
    def agent(self) -> Agent | None:
        """The agent that new requests get; `None` until the model is loaded."""
        return self._agent

    @property
    def waiting(self) -> int:
        """Requests that wait for a slot."""
        return self._gate.waiting

    @property
    def running(self) -> int:
        """Requests that hold a slot or wait for one."""
        return self._callers.total()

    async def start(self) -> None:
        """Open the model and let it say one token; only then is the service ready.

        Raises:
            ConfigError: The model cannot be opened.
        """
        self._agent = await self._opened()
        if self.state == "starting":
            self.state = "ready"

    async def reload(self) -> None:
        """Open the model anew and use it for requests from now on; those that run finish on the one they began with.

        Raises:
            ConfigError: The new model cannot be opened; the old one stays.
        """
        async with self._reloading:
            if self.state != "ready" or self._agent is None:
                raise Problem(503, f"the server is {self.state}", type="server_error", code="not_ready")
            fresh = await self._opened()
            old, self._agent = self._agent, fresh
            self.reloads += 1
            # Leases hold the old agent open until the last of them ends.
            await old.__aexit__(None, None, None)

    async def _opened(self) -> Agent:
        agent = self._open_agent()
        await agent.__aenter__()
        try:
            async with asyncio.timeout(WARM_UP_TIMEOUT_S):
                await agent.start("Hello", seed=0, sampling=WARM_UP, limits=Limits(max_turns=1, max_tokens=1)).execute()
        except BaseException:
            await agent.__aexit__(None, None, None)
            raise
        return agent

    @asynccontextmanager
    async def admitted(self, caller: str) -> AsyncIterator[Lease]:
        """Wait for a slot and lease the agent.

        Args:
            caller: Whose share it counts against: a key's digest or an address.

        Raises:
            Problem: 503 where the service is not ready, 429 where too much is going on.
        """
        self._check_ready()
        if self._callers[caller] >= self._admission.max_per_key:
            raise _busy(f"{self._callers[caller]} requests of yours are being answered; wait for one to end")
        self._callers[caller] += 1
        self._idle.clear()
        try:
            await self._enter()
            try:
                self._check_ready()
                agent = self._agent
                if agent is None:
                    raise _not_ready(self.state)
                async with agent:
                    yield Lease(agent, self)
            finally:
                self._gate.leave()
        finally:
            self._callers[caller] -= 1
            if not self._callers[caller]:
                del self._callers[caller]
            if not self._callers:
                self._idle.set()

    async def _enter(self) -> None:
        if self._gate.try_enter():
            return
        try:
            await self._gate.enter(self._admission.request_timeout_s)
        except ToolBusy:
            raise _busy("the server is busy and its queue is full") from None
        except TimeoutError:
            raise _busy("no slot became free in time") from None

    def _check_ready(self) -> None:
        if self.state not in ("ready",):
            raise _not_ready(self.state)

    async def drain(self, grace_s: float) -> None:
        """Refuse new requests and let the others finish; what still runs after `grace_s` is ended with what it has."""
        self.state = "draining"
        if await self._is_idle_within(grace_s):
            return
        _LOG.warning("%d requests did not finish within %.3g s and are ended", self.running, grace_s)
        for run in tuple(self.live.values()):
            run.stop(StopReason.ABORTED)
        await self._is_idle_within(grace_s)

    async def _is_idle_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    async def aclose(self) -> None:
        """Close the model and its tools."""
        self.state = "closed"
        agent, self._agent = self._agent, None
        if agent is not None:
            await agent.__aexit__(None, None, None)


def _busy(message: str) -> Problem:
    return Problem(429, message, type="rate_limit_error", code="rate_limit_exceeded", retry_after_s=BUSY_RETRY_S)


def _not_ready(state: State) -> Problem:
    return Problem(503, f"the server is {state}", type="server_error", code="not_ready", retry_after_s=BUSY_RETRY_S)
