"""One set of weights on many servers: whoever missed it is not used until it has it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from icrl.errors import ConfigError, IcrlError, WeightSyncError
from icrl.runtime.engines.member import Member, MemberState, Startable, describe
from icrl.runtime.engines.pool_config import PoolConfig
from icrl.runtime.engines.protocol import PauseMode, WeightSink

__all__ = ["PoolWeights"]

Weights = Iterable[tuple[str, Any]]


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
        self._kept: list[tuple[str, Any]] | None = None
        self._changing = False
        self._admissions: set[asyncio.Future[None]] = set()
        self.version: int | None = None
        """The weights that every used server has; `None` before the first one is used."""
        self.vocab_size: int | None = None
        """That of every used server."""
        self.aborts = 0
        """How often requests were ended by a pause."""

    async def pause(self, mode: PauseMode) -> None:
        """Make every server that answers stop sampling.

        Raises:
            WeightSyncError: None did.
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
        """Give the weights to every server that answers; one that does not take them is not used until it has them.

        Raises:
            WeightSyncError: No server took them.
        """
        paused = self._changing
        await self._interrupt()
        try:
            await self._update(weights, version)
        finally:
            self._changing = paused

    async def _update(self, weights: Weights, version: int) -> None:
        async with self._lock:
            targets = self._reachable()
            self._kept = None  # first, as two copies may be more than fits
            if self._config.keep_weights:
                weights = [(name, _copy(value)) for name, value in weights]
            elif len(targets) > 1:
                weights = list(weights)
            for member in targets:
                member.tainted = True
            took = await self._all(
                targets, f"update to version {version}", lambda sink: sink.update(weights, version),
                self._config.update_timeout_s,
            )  # fmt: skip
            self.version = version
            self._kept = weights if self._config.keep_weights and isinstance(weights, list) else None
            for member in took:
                member.tainted = False
                member.turn("used")
                self._admitted(member)

    async def resume(self) -> None:
        """Make every server sample again that was paused and still answers.

        Raises:
            WeightSyncError: There are such servers, but none did.
        """
        async with self._lock:
            self._changing = False
            targets = [member for member in self._members if member.maybe_paused and member.state != "away"]
            if targets:
                for member in await self._all(targets, "resume", lambda s: s.resume(), self._config.control_timeout_s):
                    member.maybe_paused = False

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
        member.identify(self.version)
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
        if self._changing:
            return
        admission = asyncio.ensure_future(self._admit(member))
        self._admissions.add(admission)
        try:
            await asyncio.wait([admission])
        finally:
            admission.cancel()
            self._admissions.discard(admission)
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
        async with self._lock:
            if self.version is None:
                self.version = member.version
            if member.version != self.version or member.tainted:
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
        if admissions:
            await asyncio.wait(admissions)

    def _reachable(self) -> list[Member]:
        return [member for member in self._members if member.state != "away"]

    async def _all(
        self, targets: Sequence[Member], what: str, act: Callable[[WeightSink], Any], timeout_s: float
    ) -> list[Member]:
        """Do something with all servers at once, eject those where it fails, and return the others."""
        if not targets:
            raise WeightSyncError(f"{what}: no server of the pool answers: {describe(self._members)}")
        errors = await asyncio.gather(*(self._one(member, what, act, timeout_s) for member in targets))
        done = [member for member, error in zip(targets, errors, strict=True) if error is None]
        for member, error in zip(targets, errors, strict=True):
            if error is not None:
                self._eject(member, error, state="away")
        if not done:
            raise WeightSyncError(f"{what}: failed on every server of the pool: {describe(targets)}")
        return done

    async def _one(self, member: Member, what: str, act: Callable[[WeightSink], Any], timeout_s: float) -> str | None:
        try:
            async with asyncio.timeout(timeout_s):
                await act(member.server)
        except TimeoutError:
            return f"{what}: not done within {timeout_s:g} s"
        except WeightSyncError as error:
            return str(error)
        except (IcrlError, OSError) as error:
            return f"{what}: {error}"
        return None


def _copy(value: Any) -> Any:
    """Copy a tensor into host memory: the trainer goes on changing its own."""
    return value.detach().to("cpu", copy=True) if hasattr(value, "detach") else value
