"""One set of weights on many servers: whoever missed it is not used until it has it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Literal, Protocol

from icrl.errors import ConfigError, EngineError, IcrlError, WeightSyncError
from icrl.runtime.engines.adapter import Adapter
from icrl.runtime.engines.member import Member, MemberState, Startable, describe
from icrl.runtime.engines.pool_config import PoolConfig
from icrl.runtime.engines.protocol import PauseMode, WeightSink
from icrl.runtime.engines.uncancelled import uncancelled

__all__ = ["PoolWeights"]

Weights = Iterable[tuple[str, Any]]

UNAVAILABLE = frozenset({None, 502, 503, 504})
"""Statuses of errors that say no more than that nobody is there now: none, and those of a proxy or of a start."""

_LOG = logging.getLogger(__name__)


class _Eject(Protocol):
    def __call__(self, member: Member, why: str, *, state: MemberState = "away") -> None: ...


class PoolWeights:
    """Pauses, updates and resumes the servers of a pool, and brings those up to date that come back.

    Args:
        members: The servers.
        config: How long they may take, and whether weights are kept.
        eject: Gives a server no more requests.
        admitted: Called with a server that is about to be used (again).
    """

    def __init__(
        self, members: Sequence[Member], config: PoolConfig, *, eject: _Eject, admitted: Callable[[Member], None]
    ) -> None:
        self._members = members
        self._config = config
        self._eject = eject
        self._admitted = admitted
        self._lock = asyncio.Lock()
        self._kept: list[tuple[str, Any]] | Adapter | None = None
        self._changing = False
        self._admissions: set[asyncio.Future[None]] = set()
        self.version: int | None = None
        """The weights that every used server has; `None` before the first one is used."""
        self.vocab_size: int | None = None
        """That of every used server."""
        self.newest: int | None = None
        """The newest weights that were ever sent from here, or held before; `None` while none were sent: then it is
        somebody else who trains, if anybody does, and any newer version will do."""
        self.aborts = 0
        """How often requests were ended by a pause."""
        self.on_notice: Callable[[str], None] = _LOG.warning
        """Told what an operator should know while it lasts."""
        self.closing = asyncio.Event()
        """Whether the pool is being closed: nothing is waited for any more."""

    async def aclose(self) -> None:
        """Let nobody in any more."""
        self.closing.set()
        await self._interrupt()

    async def pause(self, mode: PauseMode) -> None:
        """Make every server that is there stop sampling; one that is away does not sample.

        Raises:
            WeightSyncError: None did, though there is one.
        """
        await self._interrupt()
        async with self._lock:
            self.aborts += mode == "abort"
            targets = self._reachable()
            for member in targets:
                member.maybe_paused = True
            try:
                await self._all(targets, "pause", lambda sink: sink.pause(mode), self._config.control_timeout_s)
            except WeightSyncError:
                self._changing = False
                raise

    async def update(self, weights: Weights, version: int) -> None:
        """Give the weights to every server that is there; one that does not take them is not used until it has them.

        Where none is there, or none lives through it, this waits for the first that comes back.

        Raises:
            WeightSyncError: A server refused them and none took them, or none was there for the pool's patience.
        """
        paused = self._changing
        await self._interrupt()
        try:
            await self._update(weights, version)
        finally:
            self._changing = paused
        if not paused:  # who did not pause need not resume those that came back and were paused for this
            await self.resume()

    async def _update(self, weights: Weights, version: int) -> None:
        async with self._lock:
            self._kept = None  # first, as two copies may be more than fits
            if isinstance(weights, Adapter):
                pass  # a copy already, and small
            elif self._config.keep_weights or len(self._members) > 1:
                collect = partial(_collected, weights, copy=self._config.keep_weights)
                # It takes seconds, and nobody else may go on with the iterable or the tensors meanwhile.
                work = asyncio.to_thread(collect)
                weights = await uncancelled(work, patience_s=self._config.update_timeout_s)
            self.newest = max(self.newest or 0, self.version or 0, version)
            took = await self._deliver(weights, version)
            self.version = version
            self._kept = weights if self._config.keep_weights and isinstance(weights, list | Adapter) else None
            for member in took:
                member.tainted = False
                member.turn("used")
                self._admitted(member)

    async def _deliver(self, weights: Weights, version: int) -> list[Member]:
        """Send weights until at least one server has them; return those that have."""
        what = f"update to version {version}"
        deadline: float | None = None
        while True:
            targets = self._reachable()
            if took := await self._send(targets, what, weights, version):
                return took
            if targets and not isinstance(weights, list | Adapter):  # they went by, and will not come again
                raise WeightSyncError(f"{what}: no server lived through it: {describe(targets)}")
            deadline = deadline or time.monotonic() + self._config.give_up_s
            await self._return_of_one(what, deadline)

    async def _send(self, targets: Sequence[Member], what: str, weights: Weights, version: int) -> list[Member]:
        """Send weights to servers; whatever happens, none is used that may have others than it is thought to have."""
        for member in targets:
            member.tainted = True
        try:
            return await self._all(
                targets, what, lambda sink: sink.update(weights, version), self._config.update_timeout_s
            )
        except BaseException:  # whoever cancels leaves servers with the old weights, with the new ones, and with both
            for member in targets:
                if member.state != "away":
                    self._eject(member, f"{what} was broken off", state="away")
            raise

    async def _return_of_one(self, what: str, deadline: float) -> None:
        """Wait until a server is there again that is away, as all are; it is connected and paused then.

        Raises:
            WeightSyncError: None came, or the pool was closed.
        """
        left_s = deadline - time.monotonic()
        self.on_notice(f"{what} waits up to {left_s:.0f} s for a server to come back: {describe(self._members)}")
        waits = [asyncio.create_task(self._back(member)) for member in self._members]
        closing = asyncio.create_task(self.closing.wait())
        try:
            await asyncio.wait([*waits, closing], timeout=max(0.0, left_s), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (*waits, closing):
                task.cancel()
            await asyncio.wait([*waits, closing])
        if self.closing.is_set():
            raise WeightSyncError(f"{what}: the pool was closed")
        if not self._reachable():
            why = f"no server of the pool was there to take it for {self._config.give_up_s:g} s, the pool's patience"
            raise WeightSyncError(f"{what}: {why}: {describe(self._members)}")

    async def _back(self, member: Member) -> None:
        """Connect to a server that is away, as soon as that is possible, and pause it."""
        while True:
            await asyncio.sleep(self._config.probe_every_s)
            try:
                await self.reach(member)
                member.maybe_paused = True
                async with asyncio.timeout(self._config.control_timeout_s):
                    await member.server.pause("abort")
            except Exception as error:
                member.why = str(error) or "did not answer in time when it was to take weights"
            else:
                return member.turn("stale", "waits for weights")

    async def resume(self) -> None:
        """Make every server sample again that was paused and is still there.

        Raises:
            WeightSyncError: There are such servers, but none did.
        """
        async with self._lock:
            try:
                targets = [member for member in self._reachable() if member.maybe_paused]
                for member in await self._all(targets, "resume", lambda s: s.resume(), self._config.control_timeout_s):
                    member.maybe_paused = False
            finally:
                self._changing = False

    async def reach(self, member: Member) -> None:
        """Connect to a server.

        Raises:
            IcrlError: It does not serve, or serves another model.
            TimeoutError: It did not answer in time.
        """
        async with asyncio.timeout(self._config.probe_timeout_s):
            if isinstance(member.server, Startable):
                await member.server.start()
            member.note(await member.server.probe())
        member.identify(self.version, ours=self.newest is not None)
        size = member.server.info.vocab_size
        if self.vocab_size not in (None, size):
            raise ConfigError(
                f"{member.name}: has a vocabulary of {size}, other servers of the pool have one of {self.vocab_size}; "
                "all have to serve the same model"
            )
        self.vocab_size = size

    async def admit(self, member: Member) -> None:
        """Connect to a server that is out, bring it up to date, and let it in; not while weights change.

        Raises:
            IcrlError: It does not serve, serves another model, or lacks weights that cannot be sent again.
            TimeoutError: It did not answer in time.
        """
        if self._changing or self.closing.is_set():
            return
        admission = asyncio.ensure_future(self._admit(member))
        self._admissions.add(admission)
        admission.add_done_callback(self._admissions.discard)
        try:
            await asyncio.wait([admission])
        finally:
            admission.cancel()
        if not admission.cancelled():
            admission.result()

    async def _admit(self, member: Member) -> None:
        await self.reach(member)
        await self.adopt(member)

    async def adopt(self, member: Member) -> None:
        """Bring a server up to date that was reached just now, and let it in.

        Raises:
            IcrlError: It lacks weights that cannot be sent again, or did not take them.
            TimeoutError: It did not answer in time.
        """
        if self.version is None:
            self.version = member.version
        if self.newest is None and not member.tainted:
            self.version = max(self.version, member.version)
        # A server that was just connected to has no adapter, and what it samples without one is version 0.
        bare = isinstance(self._kept, Adapter)
        if member.version != self.version or member.tainted or bare:
            await self._bring(member)
        if member.maybe_paused:
            async with asyncio.timeout(self._config.control_timeout_s):
                await member.server.resume()
            member.maybe_paused = False
        member.turn("used")
        self._admitted(member)

    async def _bring(self, member: Member) -> None:
        """Send the last weights to one server."""
        has = (
            "weights of which nobody knows what they are" if member.tainted else f"weights of version {member.version}"
        )
        if self._kept is None or self.version is None:
            why = f"has {has}; the pool is at version {self.version}, and those cannot be sent again"
            member.turn("stale", why)
            raise WeightSyncError(why)
        member.tainted = member.maybe_paused = True
        async with asyncio.timeout(self._config.update_timeout_s):
            await member.server.pause("abort")
            await member.server.update(self._kept, self.version)
        member.tainted = False

    async def _interrupt(self) -> None:
        """Admit nobody from now on: what a server that comes back is sent or asked is about to be replaced."""
        self._changing = True
        admissions = tuple(self._admissions)
        for admission in admissions:
            admission.cancel()
        await asyncio.gather(*admissions, return_exceptions=True)

    def _reachable(self) -> list[Member]:
        return [member for member in self._members if member.state != "away"]

    async def _all(
        self, targets: Sequence[Member], what: str, act: Callable[[WeightSink], Any], timeout_s: float
    ) -> list[Member]:
        """Do something with all servers at once, eject those where it fails, and return the others.

        Raises:
            WeightSyncError: It failed on all, and one of them is there.
        """
        outcomes = await asyncio.gather(*(self._one(member, what, act, timeout_s) for member in targets))
        done = [member for member, outcome in zip(targets, outcomes, strict=True) if outcome == "done"]
        if not done and "refused" in outcomes:
            raise WeightSyncError(f"{what}: failed on every server of the pool: {describe(targets)}")
        return done

    async def _one(
        self, member: Member, what: str, act: Callable[[WeightSink], Any], timeout_s: float
    ) -> Literal["done", "refused", "gone"]:
        """Do something with one server; eject it at once where that fails, so that no request goes there meanwhile."""
        try:
            async with asyncio.timeout(timeout_s):
                await act(member.server)
        except TimeoutError:
            self._eject(member, f"{what}: not done within {timeout_s:g} s", state="away")
            return "gone"
        except Exception as error:
            known = isinstance(error, IcrlError | OSError)
            why = str(error) if known else f"{type(error).__name__}: {error}"
            self._eject(member, why if isinstance(error, WeightSyncError) else f"{what}: {why}", state="away")
            if _unavailable(error):
                return "gone"
        else:
            return "done"
        return "refused" if await self._answers(member) else "gone"

    async def _answers(self, member: Member) -> bool:
        """Say whether a server is there that did not do as it was told."""
        try:
            async with asyncio.timeout(self._config.probe_timeout_s):
                await member.server.probe()
        except Exception:  # whatever it is, it does not serve
            return False
        return True


def _unavailable(error: BaseException | None) -> bool:
    """Say whether an error means no more than that a server was not there, as far as its causes tell."""
    while error is not None:
        if isinstance(error, EngineError):
            return error.retryable and error.status in UNAVAILABLE
        error = error.__cause__
    return False


def _collected(weights: Weights, *, copy: bool) -> list[tuple[str, Any]]:
    """Gather all weights, and copy them into host memory if need be: the trainer goes on changing its own."""
    return [(name, _copy(value) if copy else value) for name, value in weights]


def _copy(value: Any) -> Any:
    return value.detach().to("cpu", copy=True) if hasattr(value, "detach") else value
