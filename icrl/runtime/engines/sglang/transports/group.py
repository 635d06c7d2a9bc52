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
from icrl.runtime.engines.sglang.transports.link import Link, Piece, buckets, in_thread

__all__ = ["GroupTransport"]

_numbers = count()


class GroupTransport:
    """Works across machines; the group is formed at the first update and kept until `aclose`."""

    bracketed = True

    def __init__(self, link: Link) -> None:
        self.link = link
        self._backend = "nccl" if link.device.startswith("cuda") else "gloo"
        self._name = ""
        self._group: Any = None

    async def send(self, pieces: Iterator[Piece], version: str) -> None:
        """Announce and broadcast one bucket after another; after a failure the next update forms a new group.

        Raises:
            EngineError: The server refused or did not answer.
            RuntimeError: The broadcast failed.
        """
        try:
            if self._group is None:
                await self._form()
            waiting = buckets(pieces)
            while (found := await in_thread(lambda: next(waiting, None))) is not None:
                bucket, last = found
                await self._load(bucket, version if last else None)
        except BaseException:
            self._leave()
            raise

    async def aclose(self) -> None:
        """Leave the group, on both sides."""
        if self._group is None:
            return
        with suppress(EngineError):
            await self.link.client.post("/destroy_weights_update_group", {"group_name": self._name}, timeout_s=30.0)
        self._leave()

    async def _load(self, bucket: list[Piece], version: str | None) -> None:
        payload = {
            "names": [name for name, _ in bucket],
            "dtypes": [str(tensor.dtype).removeprefix("torch.") for _, tensor in bucket],
            "shapes": [list(tensor.shape) for _, tensor in bucket],
            "group_name": self._name,
            "weight_version": version,
            "flush_cache": False,
        }
        group, patience = self._group, timedelta(seconds=self.link.timeout_s)
        await _both(
            self.link.load("/update_weights_from_distributed", payload),
            asyncio.to_thread(lambda: _broadcast(group, bucket, patience)),
        )

    async def _form(self) -> None:
        """Meet the server's processes at a store of ours."""
        link = self.link
        self._name = f"icrl-{next(_numbers)}-{id(self):x}"
        size = 1 + link.ranks
        patience = timedelta(seconds=link.timeout_s)
        host, store = await in_thread(lambda: _opened(link.client.address, size, patience))
        payload = {
            "master_address": host,
            "master_port": store.port,
            "rank_offset": 1,
            "world_size": size,
            "group_name": self._name,
            "backend": self._backend,
        }
        _, self._group = await _both(
            link.client.post("/init_weights_update_group", payload, timeout_s=link.timeout_s),
            asyncio.to_thread(lambda: _joined(store, self._name, size, self._backend, patience)),
        )

    def _leave(self) -> None:
        group, self._group = self._group, None
        if group is not None:
            with suppress(RuntimeError, ValueError, KeyError):
                dist.destroy_process_group(group)


async def _both(request: Any, local: Any) -> list[Any]:
    """Await both sides of a meeting; when one fails the other is not waited for.

    A thread that waits in vain ends at its own deadline.
    """
    tasks = [asyncio.ensure_future(request), asyncio.ensure_future(local)]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def _opened(server: str, size: int, patience: timedelta) -> tuple[str, Any]:
    """Open a store on a free port, and say under which address the server finds it."""
    host = _own_address(server)
    store = dist.TCPStore(  # type: ignore[attr-defined]
        host, 0, size, is_master=True, timeout=patience, wait_for_workers=False
    )
    return host, store


def _joined(store: Any, name: str, size: int, backend: str, patience: timedelta) -> Any:
    """Become rank 0 of a group beside whatever groups the trainer has.

    The server lays the same prefix and then calls the same function of torch, which is private: there is no public
    way to form a group with processes that are not of the default group.
    """
    group, _ = distributed_c10d._new_process_group_helper(
        size,
        0,
        [],
        distributed_c10d.Backend(backend),
        distributed_c10d.PrefixStore(name, store),
        group_name=distributed_c10d.GroupName(name),
        timeout=patience,
    )
    # What `destroy_process_group` expects to find.
    distributed_c10d._world.pg_group_ranks[group] = {rank: rank for rank in range(size)}
    return group


def _broadcast(group: Any, bucket: list[Piece], patience: timedelta) -> None:
    options = dist.BroadcastOptions()
    options.rootRank = 0
    options.timeout = patience
    tensors = [tensor.contiguous() for _, tensor in bucket]
    for work in [group.broadcast([tensor], options) for tensor in tensors]:
        work.wait(patience)
    if tensors[0].is_cuda:
        torch.cuda.synchronize(tensors[0].device)


def _own_address(server: str) -> str:
    """Return the address of this machine that the server can reach: the one its replies come to."""
    where = urlsplit(server)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((where.hostname or "127.0.0.1", where.port or 80))
        address: str = probe.getsockname()[0]
    return address
