"""Through a process group: the trainer is rank 0, the server's processes are the others.

Tested with gloo against a server on a CPU. NCCL takes the same path and is untested.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from itertools import count
from typing import Any
from urllib.parse import urlsplit

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from icrl.errors import EngineError
from icrl.runtime.engines.sglang.transports.link import GRACE_S, Link, Piece, buckets, in_thread
from icrl.runtime.engines.uncancelled import uncancelled

__all__ = ["GroupTransport"]

_numbers = count()


class _Held:
    """The only reference to a group.

    The other side learns that we have left when our connections close, which happens when the group is freed, and not
    before. So no frame of a traceback may hold it.
    """

    __slots__ = ("group",)

    def __init__(self, group: Any) -> None:
        self.group = group


class GroupTransport:
    """Works across machines; the group is formed at the first update and kept until `aclose`."""

    bracketed = True

    def __init__(self, link: Link) -> None:
        self.link = link
        self._backend = "nccl" if link.device.startswith("cuda") else "gloo"
        self._name = ""
        self._store: Any = None
        self._held: _Held | None = None

    async def send(self, pieces: Iterator[Piece], version: str) -> None:
        """Announce and broadcast one bucket after another; after a failure the next update forms a new group.

        Raises:
            EngineError: The server refused or did not answer.
            RuntimeError: The broadcast failed.
        """
        try:
            held = self._held or await self._form()
            waiting = buckets(pieces)
            while (found := await in_thread(lambda: next(waiting, None))) is not None:
                bucket, last = found
                # Once it is announced, the server can do nothing else before it has come.
                await uncancelled(self._load(held, bucket, version if last else None), patience_s=GRACE_S)
        except BaseException:
            await uncancelled(self._part(), patience_s=2 * GRACE_S)
            raise

    async def aclose(self) -> None:
        """Leave the group, on both sides."""
        await self._part()

    async def _load(self, held: _Held, bucket: list[Piece], version: str | None) -> None:
        payload = {
            "names": [name for name, _ in bucket],
            "dtypes": [str(tensor.dtype).removeprefix("torch.") for _, tensor in bucket],
            "shapes": [list(tensor.shape) for _, tensor in bucket],
            "group_name": self._name,
            "weight_version": version,
            "flush_cache": False,
        }
        patience = timedelta(seconds=self.link.timeout_s)
        await _both(
            self.link.load("/update_weights_from_distributed", payload),
            asyncio.to_thread(lambda: _broadcast(held, bucket, patience)),
        )

    async def _form(self) -> _Held:
        """Meet the server's processes at a store of ours."""
        link = self.link
        name = f"icrl-{next(_numbers)}-{id(self):x}"
        size = 1 + link.ranks
        patience = timedelta(seconds=link.timeout_s)
        host, self._store, guest = await in_thread(lambda: _opened(link.client.address, size, patience))
        payload = {
            "master_address": host,
            "master_port": guest.port,
            "rank_offset": 1,
            "world_size": size,
            "group_name": name,
            "backend": self._backend,
        }
        self._name = name
        _, self._held = await _both(
            link.client.post("/init_weights_update_group", payload, timeout_s=link.timeout_s),
            asyncio.to_thread(lambda: _joined(guest, name, size, self._backend, patience)),
        )
        assert self._held is not None
        return self._held

    async def _part(self) -> None:
        """Leave the group, here and at the server: what still waits on one side ends when the other has left."""
        held, self._held, self._store = self._held, None, None
        name, self._name = self._name, ""
        ends = [asyncio.to_thread(_leave, held)] if held is not None else []
        ends += [self._forget(name)] if name else []
        if ends:
            await asyncio.wait([asyncio.ensure_future(end) for end in ends], timeout=GRACE_S)

    async def _forget(self, name: str) -> None:
        with suppress(EngineError):
            await self.link.client.post("/destroy_weights_update_group", {"group_name": name}, timeout_s=GRACE_S)


async def _both(request: Any, local: Any) -> list[Any]:
    """Await both sides of a meeting; when one fails the other is not waited for.

    A thread that waits in vain ends when the store or the group is given up, or at its own deadline.
    """
    tasks = [asyncio.ensure_future(request), asyncio.ensure_future(local)]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def _opened(server: str, size: int, patience: timedelta) -> tuple[str, Any, Any]:
    """Open a store on a free port, say under which address the server finds it, and go in as its first guest.

    When the store is given up, guests hear of it who are waiting there.
    """
    host = _own_address(server)
    store = dist.TCPStore(  # type: ignore[attr-defined]
        host, 0, size, is_master=True, timeout=patience, wait_for_workers=False
    )
    guest = dist.TCPStore(host, store.port, size, is_master=False, timeout=patience)  # type: ignore[attr-defined]
    return host, store, guest


def _joined(guest: Any, name: str, size: int, backend: str, patience: timedelta) -> _Held:
    """Become rank 0 of a group beside whatever groups the trainer has.

    The server lays the same prefix and then calls the same function of torch, which is private: there is no public
    way to form a group with processes that are not of the default group.
    """
    group, _ = distributed_c10d._new_process_group_helper(
        size,
        0,
        [],
        distributed_c10d.Backend(backend),
        distributed_c10d.PrefixStore(name, guest),
        group_name=distributed_c10d.GroupName(name),
        timeout=patience,
    )
    # What `destroy_process_group` expects to find.
    distributed_c10d._world.pg_group_ranks[group] = {rank: rank for rank in range(size)}
    return _Held(group)


def _broadcast(held: _Held, bucket: list[Piece], patience: timedelta) -> None:
    options = dist.BroadcastOptions()
    options.rootRank = 0
    options.timeout = patience
    tensors = [tensor.contiguous() for _, tensor in bucket]
    works = [held.group.broadcast([tensor], options) for tensor in tensors]
    try:
        while works:
            works.pop(0).wait(patience)
    finally:
        works.clear()  # each holds the connections, too
    if tensors[0].is_cuda:
        torch.cuda.synchronize(tensors[0].device)


def _leave(held: _Held) -> None:
    """Free a group, which takes as long as something in it waits."""
    with suppress(RuntimeError, ValueError, KeyError):
        dist.destroy_process_group(held.group)
    held.group = None


def _own_address(server: str) -> str:
    """Return the address of this machine that the server can reach: the one its replies come to."""
    where = urlsplit(server)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((where.hostname or "127.0.0.1", where.port or 80))
        address: str = probe.getsockname()[0]
    return address
