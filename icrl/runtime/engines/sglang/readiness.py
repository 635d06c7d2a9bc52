"""Is a server ready? Its word for it is not enough: it has to sample a token."""

from __future__ import annotations

import asyncio

import aiohttp

__all__ = ["Readiness"]

_POLL_S = 0.25
_ANSWER_S = 60.0
_ONE_TOKEN = {"input_ids": [0], "sampling_params": {"max_new_tokens": 1, "temperature": 0}}


class Readiness:
    """Waits for one server.

    Args:
        address: Where it is.
        api_key: What it wants from clients.
    """

    def __init__(self, address: str, *, api_key: str | None = None) -> None:
        self._address = address
        self._headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        self.last = ""

    async def wait(self) -> None:
        """Return once the server sampled a token; what it last answered instead is in `last`."""
        async with aiohttp.ClientSession(headers=self._headers) as session:
            while not await self._is_ready(session):  # noqa: ASYNC110 - nobody here could set an event
                await asyncio.sleep(_POLL_S)

    async def _is_ready(self, session: aiohttp.ClientSession) -> bool:
        timeout = aiohttp.ClientTimeout(total=_ANSWER_S)
        try:
            async with session.get(f"{self._address}/health", timeout=timeout) as health:
                self.last = f"/health: {health.status}"
                if health.status != 200:
                    return False
            async with session.post(f"{self._address}/generate", json=_ONE_TOKEN, timeout=timeout) as reply:
                self.last = f"/generate: {reply.status} {(await reply.text())[:200]}"
                return reply.status == 200
        except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, TimeoutError) as error:
            self.last = f"{type(error).__name__}: {error}"
            return False
