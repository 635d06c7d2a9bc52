"""Many servers as one engine: placement, health, retries, resumption, and one set of weights."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from icrl.errors import ConfigError, EngineError, IcrlError
from icrl.runtime.engines.health import Health
from icrl.runtime.engines.member import Member, describe
from icrl.runtime.engines.placement import Placement
from icrl.runtime.engines.pool_config import PoolConfig
from icrl.runtime.engines.pool_request import PoolRequest
from icrl.runtime.engines.pool_weights import PoolWeights
from icrl.runtime.engines.protocol import FOREIGN, EngineInfo, EngineLoad, LostRequest, OnDelta, PauseMode, Server
from icrl.tokenizer import Tokenizer
from icrl.trajectory import Generation
from icrl.types import SamplingParams

if TYPE_CHECKING:
    from tenacity import RetryCallState

__all__ = ["EnginePool", "PoolConfig"]


class EnginePool:
    """Servers of one model as one engine.

    With one server it still tries again what failed, resumes what was lost, and waits while the server is away.

    Args:
        members: The servers; the pool starts and closes them.
        tokenizer: Finds stop strings where a request goes on elsewhere; that of a member by default.
        config: How patient it is.

    Raises:
        ConfigError: There are no members, or there is no tokenizer.

    Example:
        >>> from icrl.testing import ScriptedEngine
        >>> class Fake(ScriptedEngine):
        ...     async def probe(self):
        ...         return EngineLoad(running=len(self.live), waiting=0, kv_usage=0.0)
        >>> async def main():
        ...     pool = EnginePool([Fake(["one"]), Fake(["two"])])
        ...     await pool.start()
        ...     reply = await pool.generate([65], SamplingParams(), request_id="r", session="s")
        ...     await pool.aclose()
        ...     return pool.tokenizer.decode(reply.ids), reply.finish_reason
        >>> asyncio.run(main())
        ('one', 'eos')
    """

    def __init__(
        self, members: Sequence[Server], *, tokenizer: Tokenizer | None = None, config: PoolConfig | None = None
    ) -> None:
        if not members:
            raise ConfigError("members: a pool needs at least one server")
        config = config or PoolConfig()
        tokenizer = tokenizer or next((t for m in members if (t := getattr(m, "tokenizer", None)) is not None), None)
        if tokenizer is None:
            raise ConfigError("tokenizer: no server of the pool has one; pass tokenizer=… to the pool")
        self.tokenizer: Tokenizer = tokenizer
        """That of the servers' model."""
        self.members = tuple(Member(server, i, probes=config.probes) for i, server in enumerate(members))
        """The servers, and what the pool knows about them."""
        self._config = config
        self._placement = Placement(spill_over=config.spill_over, sessions=config.sessions, prefixes=config.prefixes)
        self._health = Health(self.members, config, admit=self._admit, changed=self._changed)
        self._weights = PoolWeights(self.members, config, eject=self._health.eject, admitted=self._admitted)
        self._used: tuple[Member, ...] = ()
        self._info: EngineInfo | None = None
        self._live: dict[str, PoolRequest] = {}
        self._started = self._closed = False

    @property
    def info(self) -> EngineInfo:
        """What all servers can do; the smallest bounds.

        Raises:
            EngineError: The pool was not started.
        """
        if self._info is None:
            raise EngineError("was not started; await its start() first", engine=self._name)
        return self._info

    @property
    def _name(self) -> str:
        names = [member.name for member in self.members]
        return names[0] if len(names) == 1 else f"pool of {', '.join(names)}"

    def notify(self, on_notice: Callable[[str], None]) -> None:
        """Tell somebody, instead of the log, when weights wait for a server to come back."""
        self._weights.on_notice = on_notice

    async def start(self) -> None:
        """Connect to all servers, and watch them from now on; those that are not there yet may come later.

        Raises:
            EngineError: No server answers, or one can never be used.
            ConfigError: The servers serve different models.
        """
        if self._started:
            return
        errors = await asyncio.gather(*map(self._weights.reach, self.members), return_exceptions=True)
        for member, error in zip(self.members, errors, strict=True):
            _remember(member, error)
        reached = [member for member, error in zip(self.members, errors, strict=True) if error is None]
        if not reached:
            raise EngineError(f"no server answers: {describe(self.members)}", engine=self._name, retryable=True)
        if self._closed:
            raise EngineError("is closed", engine=self._name)
        self._weights.version = max(member.version for member in reached)
        await asyncio.gather(*(self._health.let_in(member, self._weights.adopt) for member in reached))
        self._refresh()
        self._started = True
        self._health.start()

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
        """Sample a continuation of `ids` on one server, or on several one after the other.

        Raises:
            EngineError: The request is out of bounds, or kept failing until the pool's patience was over.
        """
        if request_id in self._live:
            raise EngineError(f"request id {request_id!r} is in use", engine=self._name)
        if not self._started or self._closed:
            raise EngineError("is closed" if self._closed else "was not started", engine=self._name)
        request = self._live[request_id] = PoolRequest(
            request_id,
            ids,
            params,
            session=session,
            shared_prefix=shared_prefix,
            on_delta=on_delta,
            config=self._config,
            tokenizer=self.tokenizer,
        )
        try:
            return await self._serve(request)
        finally:
            del self._live[request_id]
            await request.aclose()

    async def abort(self, request_id: str) -> None:
        """Make the pending `generate` return what it has, also while it waits or is tried again."""
        request = self._live.get(request_id)
        if request is not None:
            await request.abort()

    async def aclose(self) -> None:
        """Close all servers; pending requests return as aborted."""
        self._closed = True
        self._weights.closing.set()
        await self._health.aclose()
        await asyncio.gather(*(request.abort() for request in self._live.values()))
        closing = [asyncio.ensure_future(member.server.aclose()) for member in self.members]
        await asyncio.wait(closing)  # all, though one may fail
        await self._weights.aclose()
        await asyncio.gather(*closing)

    async def probe(self) -> EngineLoad:
        """Ask all servers how busy they are: requests are summed, memory is the mean.

        Raises:
            EngineError: None answers.
        """
        await asyncio.gather(*map(self._health.ask, self._used))
        loads = [member.load for member in self._used if member.load is not None]
        if not loads:
            raise EngineError(f"no server answers: {describe(self.members)}", engine=self._name, retryable=True)
        return EngineLoad(
            running=sum(load.running for load in loads),
            waiting=sum(load.waiting for load in loads),
            kv_usage=sum(load.kv_usage for load in loads) / len(loads),
        )

    async def pause(self, mode: PauseMode = "in_place") -> None:
        """Make all servers stop sampling that are there.

        Raises:
            WeightSyncError: None did, though one is there.
        """
        await self._weights.pause(mode)

    async def update(self, weights: Iterable[tuple[str, Any]], version: int) -> None:
        """Give the weights to all servers; one that does not take them is not used until it has them.

        Where no server is there, or none lives through it, this waits for the first that comes back, and sends the
        weights then.

        Raises:
            WeightSyncError: A server refused them and none took them, or none was there for the pool's patience.
        """
        await self._weights.update(weights, version)
        self._refresh()

    async def resume(self) -> None:
        """Make all servers sample again that are there.

        Raises:
            WeightSyncError: None did, though one is there.
        """
        await self._weights.resume()

    async def _serve(self, request: PoolRequest) -> Generation:
        try:
            return await self._attempt(request)
        except EngineError as error:
            if not error.retryable:
                raise
        # Tenacity takes longer to import than everything else here, and is seldom needed.
        from tenacity import AsyncRetrying, retry_if_exception

        retrying = AsyncRetrying(
            stop=lambda state: request.patience_s <= state.upcoming_sleep,
            wait=lambda state: request.wait_s(),
            retry=retry_if_exception(lambda error: isinstance(error, EngineError) and error.retryable),
            sleep=request.rest,
            retry_error_callback=lambda state: self._give_up(request, state),
        )
        await request.rest(request.wait_s())
        return await retrying(self._attempt, request)

    def _give_up(self, request: PoolRequest, state: RetryCallState) -> Generation:
        error = None if state.outcome is None else state.outcome.exception()
        raise self._patience_over(request) from error

    def _patience_over(self, request: PoolRequest) -> EngineError:
        last = f"; the last error: {request.last_error}" if request.last_error else ""
        return EngineError(
            f"nothing but failures for {self._config.give_up_s:g} s, which is the pool's patience{last}; "
            f"its servers: {describe(self.members)}",
            engine=self._name,
        )

    async def _attempt(self, request: PoolRequest) -> Generation:
        """Let one server go on with a request.

        Raises:
            EngineError: It failed; where that is retryable, what had arrived is kept.
        """
        member = None if request.aborted.is_set() else await self._place(request)
        if member is None:
            return request.whole("abort")
        version, aborts = member.version, self._weights.aborts
        try:
            part = await request.ask(member)
        except LostRequest as lost:
            if self._foreign(member, lost.partial, version, lost.message) is not None and not request.watched:
                return await self._failed(request, member, lost)
            request.add(lost.partial, version=version)
            return await self._failed(request, member, lost, brought=bool(lost.partial.ids))
        except TimeoutError:
            why = request.last_error or "did not hand over what it had when asked to"
            return await self._failed(request, member, EngineError(why, engine=member.name, retryable=True))
        except EngineError as error:
            if not error.retryable:
                raise
            return await self._failed(request, member, error)
        wanted = request.aborted.is_set() or aborts != self._weights.aborts or self._closed
        return await self._arrived(request, member, part, version=version, wanted=wanted)

    async def _arrived(
        self, request: PoolRequest, member: Member, part: Generation, *, version: int, wanted: bool
    ) -> Generation:
        """Return the whole that a server's part completes.

        Args:
            request: The request.
            member: The server.
            part: What it sampled.
            version: The weights that it had.
            wanted: Whether an abort was asked for.

        Raises:
            EngineError: There is more to sample.
        """
        if (foreign := self._foreign(member, part, version)) is not None and not request.watched:
            return await self._failed(request, member, foreign)
        if not request.resumed and (part.finish_reason != "abort" or wanted):
            return request.timed(part)
        request.add(part, version=version)
        if (whole := request.ended(context_limit=self.info.context_limit)) is not None:
            return whole
        if part.finish_reason != "abort" or wanted:
            return request.whole(part.finish_reason)
        why = request.last_error or "ended the request unasked"
        error = EngineError(why, engine=member.name, retryable=True)
        return await self._failed(request, member, error, brought=bool(part.ids))

    async def _failed(
        self, request: PoolRequest, member: Member, error: EngineError, *, brought: bool = False
    ) -> Generation:
        """Return what has arrived if it is the whole after all, or if no more is wanted; see to the server.

        Raises:
            EngineError: There is more to sample.
        """
        request.note(member, error, brought=brought)
        if error.status is None:
            await request.unless_aborted(self._health.check(member))
        ended = request.ended(context_limit=self.info.context_limit)
        if ended is not None:
            return ended
        if request.aborted.is_set():
            return request.whole("abort")
        raise error

    def _foreign(self, member: Member, part: Generation, version: int, said: str = "") -> EngineError | None:
        """Eject a server that samples under other weights than it had: restarted unnoticed, or given by others.

        What it sampled carries the version that the server named, and is used only if somebody has seen it already.
        """
        foreign = any(span.version == FOREIGN for span in part.versions)
        named = part.versions[-1].version if part.versions else version
        others = self._weights.newest is not None and named > self._weights.newest
        if version <= named and not others and not foreign:
            return None
        why = f"samples under version {named} although it had version {version}"
        if foreign:
            why = said or "samples under weights that somebody else gave it"
        elif others:
            why = f"samples under version {named}, which this pool never sent it: somebody else gives it weights"
        if member.state == "used":
            member.tainted = True
            self._health.eject(member, why)
        return EngineError(why, engine=member.name, retryable=True)

    async def _place(self, request: PoolRequest) -> Member | None:
        """Choose a server, waiting for one if need be; `None` when the request is aborted.

        Raises:
            EngineError: There was none until the pool's patience was over.
        """
        while not self._used:
            request.moved.clear()
            try:
                async with asyncio.timeout(max(0.0, request.patience_s)):
                    await request.moved.wait()
            except TimeoutError:
                raise self._patience_over(request) from None
            if request.aborted.is_set():
                return None
        servers: Sequence[Member] = self._used
        if request.failures:  # once may be bad luck; twice, and another server is worth losing the cache
            servers = [m for m in servers if request.failures[m.index] < 2] or servers
        return self._placement.choose(
            servers, session=request.session, ids=request.prompt, shared_prefix=request.shared_prefix
        )

    async def _admit(self, member: Member) -> None:
        await self._weights.admit(member)
        self._refresh()

    def _admitted(self, member: Member) -> None:
        self._placement.forget(member.index)

    def _changed(self) -> None:
        self._used = tuple(m for m in self.members if m.state == "used")
        for request in self._live.values():
            request.moved.set()

    def _refresh(self) -> None:
        """Sum up what all used servers can do."""
        self._changed()
        infos = [member.server.info for member in self._used]
        if infos:
            self._info = EngineInfo(
                name=self._name,
                vocab_size=min(info.vocab_size for info in infos),
                context_limit=min(info.context_limit for info in infos),
                weight_version=self._weights.version or 0,
                capabilities=frozenset.intersection(*(info.capabilities for info in infos)),
            )


def _remember(member: Member, error: BaseException | None) -> None:
    """Keep why a server was not reached; raise what waiting does not cure."""
    if error is None:
        return
    if isinstance(error, EngineError) and error.retryable:
        member.why = str(error)
    elif isinstance(error, TimeoutError | OSError):
        member.why = str(error) or "did not answer in time"
    elif isinstance(error, IcrlError) or not isinstance(error, Exception):
        raise error
    else:
        raise EngineError(f"cannot be used: {type(error).__name__}: {error}", engine=member.name) from error
