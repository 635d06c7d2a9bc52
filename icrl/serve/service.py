"""The agent behind the server: who may use it, how it is replaced, and how it ends.

starting ──start──> ready ──drain──> draining ──cut──> ending ──aclose──> closed
                      └─reload─┘
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from typing import Literal

from icrl.errors import ConfigError, DataError, ToolBusy
from icrl.events import Event, RunStopped
from icrl.runtime.agent import Agent
from icrl.runtime.run import Run
from icrl.runtime.tools.gate import Gate
from icrl.runtime.tools.offer import Offer
from icrl.serve.ask import Ask
from icrl.serve.config import AdmissionConfig
from icrl.serve.problem import Problem, invalid
from icrl.serve.rates import Rates
from icrl.trajectory import StopReason, Trajectory
from icrl.types import Limits, SamplingParams

__all__ = ["Lease", "Service", "State", "Watcher"]

State = Literal["starting", "ready", "draining", "ending", "closed"]
"""Where a service is in its life."""

Watcher = Callable[[str], Callable[[Event], None]]
"""Asked once for every run, by its trajectory id, for something that hears its events."""

WARM_UP = SamplingParams(temperature=0.0, max_tokens=1)
WARM_UP_TIMEOUT_S = 600.0
BUSY_RETRY_S = 1.0
MINIMUM_S = 0.01
"""What is left for a request whose slot came at the last moment."""
ENDING_S = 10.0
"""How long runs that were ended may take to hand over what they have."""
_LOG = logging.getLogger("icrl.serve")


@dataclass(frozen=True, slots=True, eq=False)
class Lease:
    """The right to run requests on the agent that was current when it was given."""

    agent: Agent
    """An open agent; it stays open until the lease ends, also when the service has moved on to another."""
    ends_at: float
    """When the request has to be answered, on the clock of `time.monotonic`; the wait for a slot counts."""
    _service: Service

    def offer(self, ask: Ask) -> Offer:
        """Return what may be called on behalf of a client.

        Raises:
            Problem: The client's tools do not go with the server's, or with the model's dialect.
        """
        if ask.tool_choice == "none":
            return Offer()
        model = self.agent.model
        try:
            offer = Offer(own=model.toolbox.specs, client=ask.client_tools)
            model.dialect.stop(offer.specs)
        except ConfigError as error:
            raise invalid("tools", str(error).removeprefix("tools: ")) from error
        return offer

    def prepare(self, ask: Ask, emit: Callable[[Event], None] | None = None) -> Run:
        """Prepare a run for what a client asks.

        Raises:
            Problem: The conversation, a tool or a limit does not fit the model.
        """
        offer = self.offer(ask)
        run_id = uuid.uuid4().hex
        own = self.agent.model.limits
        limits = replace(
            own,
            max_tokens=_least(own.max_tokens, ask.max_tokens),
            max_tool_calls=_least(own.max_tool_calls, ask.max_tool_calls),
            deadline_s=min(own.deadline_s, max(MINIMUM_S, self.ends_at - time.monotonic())),
        )
        try:
            run = self.agent.start(
                ask.messages,
                seed=ask.seed,
                emit=self._hearing(run_id, emit),
                sampling=replace(ask.sampling, max_tokens=limits.max_tokens),
                limits=limits,
                trajectory_id=run_id,
                offer=offer,
            )
        except (ConfigError, DataError) as error:
            raise invalid(ask.place, str(error).removeprefix("messages: ")) from error
        length, limit = sum(len(segment.ids) for segment in run.prompt), self.agent.model.engine.info.context_limit
        if length >= limit:
            message = f"the conversation has {length} tokens; the model takes {limit}, its answer included"
            raise invalid(ask.place, message, code="context_length_exceeded")
        return run

    def _hearing(self, run_id: str, emit: Callable[[Event], None] | None) -> Callable[[Event], None]:
        watching = [watch(run_id) for watch in self._service.watchers]

        def hear(event: Event) -> None:
            nonlocal watching
            for listener in watching:
                try:
                    listener(event)
                except Exception:  # who only watches may not break what is watched
                    _LOG.exception("run %s: a watcher failed", run_id)
                    watching = [other for other in watching if other is not listener]
            if emit is not None:
                emit(event)

        return hear

    async def execute(self, run: Run) -> Trajectory:
        """Work on a prepared run to its end; draining may end it early."""
        live = self._service.live
        live[run.id] = run
        if self._service.state == "ending":
            run.stop(StopReason.ABORTED)
        started = time.monotonic()
        try:
            trajectory = await run.execute()
        except BaseException:
            # A run that is cancelled or breaks tells nothing; whoever counts runs waits for its end.
            if run.emit is not None:
                wall_s = time.monotonic() - started
                run.emit(RunStopped(stop_reason=StopReason.ABORTED, answer=None, wall_s=wall_s))
            raise
        finally:
            del live[run.id]
        if trajectory.error is not None:
            _LOG.error("run %s: %s: %s", run.id, trajectory.error.kind, trajectory.error.message)
        return trajectory


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
        self._rates = Rates(admission.requests_per_minute)
        self._callers: Counter[str] = Counter()
        self._agent: Agent | None = None
        self._reloading = asyncio.Lock()
        self._retiring: set[asyncio.Task[None]] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._impatient = asyncio.Event()
        self.state: State = "starting"
        """Where it is in its life."""
        self.watchers: list[Watcher] = []
        """Metrics, traces and logs: whoever wants to hear every run."""
        self.live: dict[str, Run] = {}
        """Runs that are being worked on, by trajectory id."""
        self.reloads = 0
        """How often the model was replaced."""

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
            if self.state != "ready":
                raise _not_ready(self.state)
            fresh = await self._opened()
            if self.state != "ready":  # it was to end meanwhile
                await _close(fresh)
                raise _not_ready(self.state)
            old, self._agent = self._agent, fresh
            self.reloads += 1
            if old is not None:
                self._retire(old)

    async def _opened(self) -> Agent:
        agent = await asyncio.to_thread(self._open_agent)  # which may read files, or ask a hub for them
        await agent.__aenter__()
        try:
            await _warm_up(agent)
        except BaseException:
            await _close(agent)
            raise
        return agent

    def _retire(self, agent: Agent) -> None:
        """Let go of an agent that was replaced; the last to do so closes it, which may take a while or fail."""
        task = asyncio.create_task(_close(agent))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    @asynccontextmanager
    async def admitted(self, caller: str) -> AsyncIterator[Lease]:
        """Wait for a slot and lease the agent.

        Args:
            caller: Whose share it counts against: a key's digest or an address.

        Raises:
            Problem: 503 where the service is not ready, 429 where too much is going on.
        """
        ends_at = time.monotonic() + self._admission.request_timeout_s
        if self.state != "ready":
            raise _not_ready(self.state)
        if self._callers[caller] >= self._admission.max_per_key:
            raise _busy(f"{self._callers[caller]} requests of yours are being answered; wait for one to end")
        if wait_s := self._rates.take(caller):
            raise _busy(f"you may ask {self._admission.requests_per_minute:g} times a minute", retry_after_s=wait_s)
        self._callers[caller] += 1
        self._idle.clear()
        try:
            await self._enter()
            try:
                agent = self._agent
                # Whoever waited when draining began was accepted, and is answered.
                if agent is None or self.state not in ("ready", "draining"):
                    raise _not_ready(self.state)
                await agent.__aenter__()  # it is open already; from here on the lease holds it, too
                try:
                    yield Lease(agent, ends_at, self)
                finally:
                    await self._release(agent)
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

    async def _release(self, agent: Agent) -> None:
        if agent is self._agent:
            await agent.__aexit__(None, None, None)
        else:  # no answer waits for a replaced model to be closed
            self._retire(agent)

    async def drain(self, grace_s: float) -> None:
        """Refuse new requests and let the others finish; what still runs after `grace_s` is ended with what it has.

        A call of `cut` meanwhile ends it at once.
        """
        if self.state != "ending":
            self.state = "draining"
        waits = [asyncio.ensure_future(event.wait()) for event in (self._idle, self._impatient)]
        await asyncio.wait(waits, timeout=grace_s, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        if self._idle.is_set():
            return
        if self.state != "ending":
            _LOG.warning("%d requests did not finish within %.3g s and are ended", self.running, grace_s)
            self.cut()
        with suppress(TimeoutError):
            async with asyncio.timeout(ENDING_S):
                await self._idle.wait()

    def cut(self) -> None:
        """End all runs with what they have, and let no further one begin; `drain` then waits no longer."""
        self.state = "ending"
        self._impatient.set()
        for run in tuple(self.live.values()):
            run.stop(StopReason.ABORTED)

    async def aclose(self) -> None:
        """Close the model and its tools."""
        self.state = "closed"
        agent, self._agent = self._agent, None
        if agent is not None:
            await _close(agent)
        if self._retiring:
            await asyncio.wait(tuple(self._retiring))


async def _warm_up(agent: Agent) -> None:
    """Let a model say one token.

    Raises:
        ConfigError: It does not.
    """
    limits = Limits(max_turns=1, max_tokens=1, deadline_s=WARM_UP_TIMEOUT_S)
    trajectory = await agent.start("Hello", seed=0, sampling=WARM_UP, limits=limits).execute()
    if trajectory.error is not None:
        raise ConfigError(f"model: does not answer ({trajectory.error.kind}: {trajectory.error.message})")
    if trajectory.stop_reason is StopReason.DEADLINE:
        raise ConfigError(f"model: said nothing within {WARM_UP_TIMEOUT_S:g} s")


async def _close(agent: Agent) -> None:
    try:
        await agent.__aexit__(None, None, None)
    except Exception:  # there is nobody to tell but the operator
        _LOG.exception("a model was not closed cleanly")


def _least(own: int, wanted: int | None) -> int:
    return own if wanted is None else min(own, wanted)


def _busy(message: str, *, retry_after_s: float = BUSY_RETRY_S) -> Problem:
    return Problem(429, message, type="rate_limit_error", code="rate_limit_exceeded", retry_after_s=retry_after_s)


def _not_ready(state: State) -> Problem:
    return Problem(503, f"the server is {state}", type="server_error", code="not_ready", retry_after_s=BUSY_RETRY_S)
