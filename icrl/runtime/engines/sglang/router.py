"""Servers behind `sglang-router`: requests go through it, and everything else to each server that it lists.

The router hands requests out and knows no other call: pausing, aborting and weights are 404 there. To those who hold a
`RouterClient`, the router and its servers are one server.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from icrl.errors import EngineError
from icrl.runtime.engines.sglang.client import Client

__all__ = ["RouterClient"]

DISAGREED = "disagreed"
"""What the servers' weights are called where they are not the same."""

_NOTHING: Mapping[str, Any] = {}


class _Worker(msgspec.Struct):
    url: str


class _Workers(msgspec.Struct):
    """Of the router's `/workers`."""

    workers: list[_Worker]


class RouterClient(Client):
    """A router's address, and the servers behind it.

    Args:
        address: The router's, `http://host:port`.
        api_key: Sent as a bearer token, to the servers too.
    """

    def __init__(self, address: str, *, api_key: str | None = None) -> None:
        super().__init__(address, api_key=api_key)
        self._api_key = api_key
        self._workers: dict[str, Client] = {}

    @property
    def workers(self) -> tuple[str, ...]:
        """Addresses of the servers, as the router listed them at the last connect."""
        return tuple(self._workers)

    async def get(self, path: str, *, timeout_s: float) -> bytes:
        """Read `path` from all servers, and make one answer of theirs.

        Raises:
            EngineError: The router or a server cannot be reached, or refuses.
        """
        if path == "/server_info":  # the first question of whoever connects
            await self._list(timeout_s)
        answers = await self._all(lambda worker: worker.get(path, timeout_s=timeout_s))
        if path == "/v1/loads":
            return _joined(answers)
        return _agreed(answers) if path == "/model_info" else answers[0]

    async def post(self, path: str, payload: Mapping[str, Any] | bytes = _NOTHING, *, timeout_s: float) -> bytes:
        """Send `/generate` through the router, and anything else to all servers.

        Raises:
            EngineError: The router or a server cannot be reached, or refuses; the others may have acted.
        """
        if path == "/generate":
            return await super().post(path, payload, timeout_s=timeout_s)
        return (await self._all(lambda worker: worker.post(path, payload, timeout_s=timeout_s)))[0]

    async def aclose(self) -> None:
        """Close all connections."""
        await super().aclose()
        await asyncio.gather(*(worker.aclose() for worker in self._workers.values()))

    async def _list(self, timeout_s: float) -> None:
        """Ask the router which servers it has."""
        data = await super().get("/workers", timeout_s=timeout_s)
        try:
            urls = [worker.url.rstrip("/") for worker in msgspec.json.decode(data, type=_Workers).workers]
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise EngineError(f"/workers is not what sglang-router says: {error}", engine=self.address) from error
        gone = [self._workers.pop(url) for url in (*self._workers,) if url not in urls]
        await asyncio.gather(*(worker.aclose() for worker in gone))
        for url in urls:
            self._workers.setdefault(url, Client(url, api_key=self._api_key))

    async def _all(self, ask: Any) -> list[bytes]:
        if not self._workers:
            raise EngineError("the router has no servers yet", engine=self.address, status=503, retryable=True)
        answers = await asyncio.gather(*map(ask, self._workers.values()), return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
        return [answer for answer in answers if isinstance(answer, bytes)]


def _joined(answers: Sequence[bytes]) -> bytes:
    """Make one list of the schedulers of all servers."""
    return msgspec.json.encode({"loads": [load for data in answers for load in msgspec.json.decode(data)["loads"]]})


def _agreed(answers: Sequence[bytes]) -> bytes:
    """Return what the servers say of their model; weights that differ have no version."""
    models = [msgspec.json.decode(data) for data in answers]
    if len({model.get("weight_version") for model in models}) > 1:
        return msgspec.json.encode(models[0] | {"weight_version": DISAGREED})
    return answers[0]
