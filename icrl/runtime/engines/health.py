"""Watching the servers of a pool: probes, ejection, and letting servers in again."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

from icrl.errors import IcrlError
from icrl.runtime.engines.member import Member, MemberState
from icrl.runtime.engines.pool_config import PoolConfig
from icrl.runtime.engines.protocol import EngineLoad

__all__ = ["Health", "refused"]

BEAT_S = 0.05
LATE = 0.1
"""Share of a probe's deadline by which this process's own loop may be late before the probe says nothing."""

Admit = Callable[[Member], Awaitable[None]]

_LOG = logging.getLogger(__name__)


def refused(error: BaseException | None) -> bool:
    """Say whether nobody listens at an address, as far as the chain of an error tells.

    Example:
        >>> refused(IcrlError("no answer")), refused(ConnectionRefusedError())
        (False, True)
    """
    while error is not None:
        if isinstance(error, ConnectionRefusedError) or isinstance(
            getattr(error, "os_error", None), ConnectionRefusedError
        ):
            return True
        error = error.__cause__ or error.__context__
    return False


class _Pulse:
    """Measures how late this process's own loop is, so that no server is blamed for it."""

    def __init__(self) -> None:
        self._clock = asyncio.get_running_loop().time
        self._asked = self._clock()
        self._late_s = 0.0

    @property
    def late_s(self) -> float:
        """Seconds by which the loop was late at most; now counts too, as a deadline may come before the beat."""
        return max(self._late_s, self._clock() - self._asked - BEAT_S)

    async def during(self, probe: Coroutine[Any, Any, EngineLoad]) -> EngineLoad:
        """Await a probe, and measure meanwhile."""
        beating = asyncio.create_task(self._beat())
        try:
            return await probe
        finally:
            beating.cancel()

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(BEAT_S)
            self._late_s, self._asked = self.late_s, self._clock()


class Health:
    """Probes servers, ejects those that fail, and tries to let ejected ones in again.

    Args:
        members: The servers.
        config: When to probe and when to eject.
        admit: Connects to a server that is out and lets it in, or raises the reason why it stays out.
        changed: Called after any server's state changed.
    """

    def __init__(
        self,
        members: Sequence[Member],
        config: PoolConfig,
        *,
        admit: Admit,
        changed: Callable[[], None],
    ) -> None:
        self._members = members
        self._config = config
        self._admit = admit
        self._changed = changed
        self._watches: list[asyncio.Task[None]] = []
        self._checks: dict[tuple[int, int], asyncio.Task[None]] = {}
        self._closed = False

    def start(self) -> None:
        """Begin to watch."""
        self._watches = [asyncio.create_task(self._watch(member)) for member in self._members]

    async def aclose(self) -> None:
        """Stop watching."""
        self._closed = True
        for task in (*self._watches, *self._checks.values()):
            task.cancel()
        await asyncio.gather(*self._watches, *self._checks.values(), return_exceptions=True)

    def eject(self, member: Member, why: str, *, state: MemberState = "away") -> None:
        """Give a server no more requests, and send those that it has elsewhere."""
        if member.state == "used":
            _LOG.warning("%s is not used any more: %s", member.name, why)
        member.turn(state, why)
        member.outcomes.clear()
        self._changed()
        for request in tuple(member.requests):
            request.leave(why)

    async def check(self, member: Member) -> None:
        """Probe a server now, as when a request failed there; eject it unless it answers.

        Requests that fail at the same time share one probe.
        """
        await self._shared(member, failures=1)

    async def ask(self, member: Member) -> None:
        """Probe a server now, for its load; a bad answer is one of those that it may give."""
        await self._shared(member, failures=self._config.probe_failures)

    async def _shared(self, member: Member, *, failures: int) -> None:
        if self._closed:
            return
        key = member.index, failures
        check = self._checks.get(key)
        if check is None:
            check = self._checks[key] = asyncio.create_task(self._probe(member, failures=failures))
            check.add_done_callback(lambda _: self._checks.pop(key, None))
        await asyncio.wait([check])  # whoever asks may be cancelled; the others still want to know

    async def _probe(self, member: Member, *, failures: int) -> None:
        """Probe once; eject the server if so many of its last probes failed, this one included."""
        if member.state != "used":
            return
        pulse = _Pulse()
        try:
            async with asyncio.timeout(self._config.probe_timeout_s):
                member.note(await pulse.during(member.server.probe()))
                return
        except TimeoutError:
            if pulse.late_s > LATE * self._config.probe_timeout_s:  # the answer may be there, unread
                _LOG.info("a probe of %s was inconclusive: this process was busy for %.1f s", member.name, pulse.late_s)
                return
            why, at_once = f"did not answer a probe within {self._config.probe_timeout_s:g} s", False
        except (IcrlError, OSError) as error:
            why, at_once = str(error), refused(error)
        except Exception as error:  # an answer that nobody thought of must not end the watch
            _LOG.exception("a probe of %s failed", member.name)
            why, at_once = f"{type(error).__name__}: {error}", False
        member.outcomes.append(False)
        if member.state == "used" and (at_once or member.outcomes.count(False) >= failures):
            self.eject(member, why)

    async def _watch(self, member: Member) -> None:
        """Probe a server that is used, and try to let in one that is not, for ever."""
        every_s = self._config.probe_every_s
        while True:
            await asyncio.sleep(random.uniform(0.75 * every_s, 1.25 * every_s))
            if member.state == "used":
                await self._probe(member, failures=self._config.probe_failures)
            else:
                await self.let_in(member, self._admit)

    async def let_in(self, member: Member, admit: Admit) -> None:
        """Try to let in a server that is out; where that fails, remember why."""
        try:
            await admit(member)
        except TimeoutError:
            member.why = "did not answer in time when it was to be used again"
        except (IcrlError, OSError) as error:
            member.why = str(error)
        except Exception as error:
            _LOG.exception("%s cannot be used", member.name)
            member.why = f"{type(error).__name__}: {error}"
        if member.state == "used":
            _LOG.info("%s is used", member.name)
        self._changed()
