"""Limits per host: how many requests at once, and how soon after each other."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from icrl.errors import ConfigError
from icrl.runtime.tools.gate import Gate
from icrl.runtime.tools.web.errors import RateLimited

__all__ = ["HostLimits", "Hosts"]


@dataclass(frozen=True, slots=True, kw_only=True)
class HostLimits:
    """How gently one host is treated.

    Example:
        >>> HostLimits().max_concurrency
        2
    """

    max_concurrency: int = 2
    """Requests at once."""
    interval_s: float = 0.5
    """Seconds between the starts of two requests."""
    max_queue: int = 64
    """Requests that may wait; further ones are refused with `ToolBusy`."""
    max_hosts: int = 4096
    """Hosts to remember; of more, those asked longest ago are forgotten."""

    def __post_init__(self) -> None:
        for name in ("max_concurrency", "max_hosts"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: must be >= 1, not {getattr(self, name)!r}")
        for name in ("interval_s", "max_queue"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}: must be >= 0, not {getattr(self, name)!r}")


@dataclass(slots=True)
class _Host:
    gate: Gate
    users: int = 0
    free_at: float = 0.0


class Hosts:
    """Lets requests to hosts through, within the limits.

    Example:
        >>> async def visit() -> int:
        ...     hosts = Hosts(HostLimits())
        ...     async with hosts.visit("rikor.example", deadline=time.monotonic() + 1.0):
        ...         return len(hosts)
        >>> asyncio.run(visit())
        1
    """

    def __init__(self, limits: HostLimits) -> None:
        self._limits = limits
        self._hosts: OrderedDict[str, _Host] = OrderedDict()

    def __len__(self) -> int:
        return len(self._hosts)

    @asynccontextmanager
    async def visit(self, name: str, *, deadline: float) -> AsyncIterator[None]:
        """Wait for a turn at a host, and keep it for the block.

        Args:
            name: The host.
            deadline: Monotonic time until which to wait.

        Raises:
            ToolBusy: Too many wait already.
            RateLimited: The turn would come after the deadline.
        """
        host = self._find(name)
        host.users += 1
        try:
            await self._enter(host, name, deadline)
            try:
                await self._pace(host, name, deadline)
                yield
            finally:
                host.gate.leave()
        finally:
            host.users -= 1

    def _find(self, name: str) -> _Host:
        host = self._hosts.get(name)
        if host is None:
            self._forget()
            gate = Gate(slots=self._limits.max_concurrency, max_queue=self._limits.max_queue)
            host = self._hosts[name] = _Host(gate)
        self._hosts.move_to_end(name)
        return host

    def _forget(self) -> None:
        """Make room for one; a host in use stays, so calls in flight bound the table as well."""
        if len(self._hosts) < self._limits.max_hosts:
            return
        idle = next((name for name, host in self._hosts.items() if host.users == 0), None)
        if idle is not None:
            del self._hosts[idle]

    async def _enter(self, host: _Host, name: str, deadline: float) -> None:
        if host.gate.try_enter():
            return
        try:
            await host.gate.enter(max(0.0, deadline - time.monotonic()))
        except TimeoutError:
            raise RateLimited(f"too many calls wait for {name}") from None

    async def _pace(self, host: _Host, name: str, deadline: float) -> None:
        now = time.monotonic()
        start = max(now, host.free_at)
        if start >= deadline:
            raise RateLimited(f"{name} is asked too often", retry_after_s=start - now)
        host.free_at = start + self._limits.interval_s
        if start > now:
            await asyncio.sleep(start - now)
