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

OF_SOME = frozenset({"/ping", "/v1/loads"})
"""What is asked of whoever is there: the router goes on without the others. What they sample when they are back says
which weights they have."""

_NOTHING: Mapping[str, Any] = {}


class _Worker(msgspec.Struct):
    url: str
    is_healthy: bool = True


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

    @property
    def servers(self) -> tuple[Client, ...]:
        """Connections to these servers; the router itself while none is known."""
        return tuple(self._workers.values()) or (self,)

    async def get(self, path: str, *, timeout_s: float) -> bytes:
        """Read `path` from all servers, and make one answer of theirs.

        Raises:
            EngineError: The router or a server cannot be reached, or refuses.
        """
        if path == "/server_info":  # the first question of whoever connects
            await self._list(timeout_s)
        answers = await self._all(lambda worker: worker.get(path, timeout_s=timeout_s), some=path in OF_SOME)
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
        """Ask the router which servers it has that it sends requests to."""
        data = await super().get("/workers", timeout_s=timeout_s)
        try:
            workers = msgspec.json.decode(data, type=_Workers).workers
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise EngineError(f"/workers is not what sglang-router says: {error}", engine=self.address) from error
        urls = [worker.url.rstrip("/") for worker in workers if worker.is_healthy]
        gone = [self._workers.pop(url) for url in (*self._workers,) if url not in urls]
        await asyncio.gather(*(worker.aclose() for worker in gone))
        for url in urls:
            self._workers.setdefault(url, Client(url, api_key=self._api_key))

    async def _all(self, ask: Any, *, some: bool = False) -> list[bytes]:
        """Ask all servers; where `some` are enough, those that cannot be reached are passed over."""
        if not self._workers:
            raise EngineError("the router has no servers yet", engine=self.address, status=503, retryable=True)
        answers = await asyncio.gather(*map(ask, self._workers.values()), return_exceptions=True)
        said = [answer for answer in answers if isinstance(answer, bytes)]
        for error in answers:
            if isinstance(error, BaseException) and not (some and said and _away(error)):
                raise error
        return said


def _away(error: BaseException) -> bool:
    return isinstance(error, EngineError) and error.retryable and error.status is None


def _joined(answers: Sequence[bytes]) -> bytes:
    """Make one list of the schedulers of all servers."""
    return msgspec.json.encode({"loads": [load for data in answers for load in msgspec.json.decode(data)["loads"]]})


def _agreed(answers: Sequence[bytes]) -> bytes:
    """Return what the servers say of their model; weights that differ have no version."""
    models = [msgspec.json.decode(data) for data in answers]
    if len({model.get("weight_version") for model in models}) > 1:
        return msgspec.json.encode(models[0] | {"weight_version": DISAGREED})
    return answers[0]
