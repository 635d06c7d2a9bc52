"""Names to addresses, in threads that hold up nobody else."""

from __future__ import annotations

import socket
from functools import partial

from aiohttp.abc import AbstractResolver, ResolveResult

from icrl.runtime.tools.threads import Threads

__all__ = ["MAX_LOOKUPS", "ThreadResolver"]

MAX_LOOKUPS = 16
"""Names looked up at once."""


class ThreadResolver(AbstractResolver):
    """Asks the system's resolver.

    A lookup cannot be cancelled, and whoever owns a domain decides how long it takes. In the event loop's shared
    threads, a few slow domains would hold up everything else that runs there.

    Example:
        >>> import asyncio
        >>> asyncio.run(ThreadResolver().resolve("127.0.0.1", 80))[0]["host"]
        '127.0.0.1'
    """

    def __init__(self) -> None:
        self._threads = Threads(name="dns", limit=MAX_LOOKUPS)

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Look a name up.

        Raises:
            OSError: There is no such name, or nobody answered.
        """
        found = await self._threads.run(
            partial(socket.getaddrinfo, host, port, family=family, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
        )
        return [
            ResolveResult(
                hostname=host,
                host=str(address[0]),
                port=int(address[1]),
                family=kind,
                proto=protocol,
                flags=socket.AI_NUMERICHOST,
            )
            for kind, _, protocol, _, address in found
        ]

    async def close(self) -> None:
        """Let idle threads end."""
        await self._threads.aclose()
