"""The zygotes of one sandbox on one event loop, and how many programs run at once."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Mapping

from icrl.errors import MissingExtraError, SandboxError, ToolBusy
from icrl.runtime.sandbox.process import FIX, Setup, ZygoteProcess
from icrl.runtime.sandbox.profiles import ProfileName
from icrl.runtime.sandbox.selftest import check

__all__ = ["Pool"]

_log = logging.getLogger("icrl.sandbox")


class Pool:
    """Keeps a zygote of each kind warm.

    Args:
        setups: What zygotes are told, by profile.
        concurrency: Programs that run at once.
        max_queue: Programs that may wait for their turn.
        forks_per_zygote: Programs after which a zygote is replaced.
        must_prove: Whether every layer has to be proved before a program is run.
    """

    def __init__(
        self,
        setups: Mapping[ProfileName, Setup],
        *,
        concurrency: int,
        max_queue: int,
        forks_per_zygote: int,
        must_prove: bool,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self._setups = setups
        self._slots = asyncio.Semaphore(concurrency)
        self._max_queue = max_queue
        self._waiting = 0
        self._forks_per_zygote = forks_per_zygote
        self._must_prove = must_prove
        self._zygotes: dict[ProfileName, ZygoteProcess] = {}
        self._starts: dict[ProfileName, asyncio.Task[ZygoteProcess]] = {}
        self._retired: dict[ZygoteProcess, asyncio.Task[None]] = {}
        self._absent: set[ProfileName] = set()

    @property
    def pids(self) -> dict[str, int]:
        """Process numbers of the zygotes by profile."""
        return {name: zygote.pid for name, zygote in self._zygotes.items()}

    def has(self, profile: ProfileName) -> bool:
        """Whether a kind of zygote is to be had."""
        return profile in self._setups and profile not in self._absent

    async def open(self) -> None:
        """Have a zygote of every kind, so that no program pays for its start with its deadline.

        Where there is a light one, the other may be absent for want of its packages.

        Raises:
            SandboxError: One cannot be started, or its children cannot be locked.
            MissingExtraError: It needs a package that is not installed.
        """
        cold = [name for name in self._setups if name not in self._zygotes and name not in self._absent]
        if not cold:
            return
        outcomes = await asyncio.gather(*map(self.zygote, cold), return_exceptions=True)
        for name, outcome in zip(cold, outcomes, strict=True):
            if isinstance(outcome, MissingExtraError) and name != "light" and "light" in self._setups:
                self._absent.add(name)
            elif isinstance(outcome, BaseException):
                raise outcome

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for a turn to run a program, and have it.

        Raises:
            ToolBusy: Too many programs wait already.
        """
        if self._slots.locked() and self._waiting >= self._max_queue:
            raise ToolBusy(f"the Python sandbox is busy: {self._waiting} programs wait already; try again later")
        self._waiting += 1
        try:
            await self._slots.acquire()
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._slots.release()

    async def zygote(self, profile: ProfileName) -> ZygoteProcess:
        """Return a zygote that can fork; one that has forked often is replaced behind its back.

        Raises:
            SandboxError: None can be started, or its children cannot be locked.
        """
        zygote = self._zygotes.get(profile)
        if zygote is not None and zygote.alive:
            if zygote.forks >= self._forks_per_zygote:
                self._start(profile)
            return zygote
        start = self._start(profile)
        try:
            # Who asks first may give up before it has started; the others go on waiting.
            return await asyncio.shield(start)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if start.cancelled() and task is not None and not task.cancelling():
                raise SandboxError("the sandbox was closed while it started") from None
            raise

    def _start(self, profile: ProfileName) -> asyncio.Task[ZygoteProcess]:
        start = self._starts.get(profile)
        if start is None:
            start = self._starts[profile] = self.loop.create_task(self._replace(profile))
            start.add_done_callback(lambda done: self._note_start(profile, done))
        return start

    def _note_start(self, profile: ProfileName, start: asyncio.Task[ZygoteProcess]) -> None:
        if self._starts.get(profile) is start:
            del self._starts[profile]
        if not start.cancelled() and start.exception() is not None:
            _log.info("no zygote for %s: %s", profile, start.exception())

    async def _replace(self, profile: ProfileName) -> ZygoteProcess:
        new = await ZygoteProcess.start(self._setups[profile])
        try:
            await self._prove(new)
        except BaseException:
            await new.aclose()
            raise
        old = self._zygotes.get(profile)
        self._zygotes[profile] = new
        if old is not None:
            self._retired[old] = self.loop.create_task(self._retire(old))
        return new

    async def _prove(self, zygote: ZygoteProcess) -> None:
        try:
            await check(zygote)
        except SandboxError as error:
            if self._must_prove:
                raise SandboxError(f"{error}. {FIX}") from error
            _log.warning("programs run without full isolation: %s", error)

    async def _retire(self, zygote: ZygoteProcess) -> None:
        try:
            await zygote.drain()
        finally:
            await zygote.aclose()
            self._retired.pop(zygote, None)

    async def aclose(self) -> None:
        """Kill every child and zygote, and wait until they are reaped."""
        tasks = [*self._starts.values(), *self._retired.values()]
        for task in tasks:
            task.cancel()
        zygotes = [*self._zygotes.values(), *self._retired]
        self._zygotes.clear()
        if tasks:
            await asyncio.wait(tasks)
        await asyncio.gather(*(zygote.aclose() for zygote in zygotes))

    def abandon(self) -> None:
        """Kill every zygote although the event loop no longer runs."""
        for zygote in [*self._zygotes.values(), *self._retired]:
            zygote.abandon()
