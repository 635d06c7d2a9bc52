"""What all transports share: the server's side of the line, buckets, and work that belongs in a thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import torch

from icrl.runtime.engines.sglang.client import Client
from icrl.runtime.engines.uncancelled import uncancelled

__all__ = ["BUCKET_BYTES", "Link", "Piece", "Transport", "TransportName", "buckets", "in_thread"]

T = TypeVar("T")

BUCKET_BYTES = 512 * 2**20
"""Weights are copied in portions of at most this size (or one tensor), which bounds the memory of an update."""

GRACE_S = 10.0
"""How long a cancelled update waits for the thread that still reads the trainer's tensors."""

Piece = tuple[str, torch.Tensor]
"""A name and a whole tensor."""

TransportName = Literal["disk", "tensor", "distributed"]
"""The three ways."""


@dataclass(slots=True, kw_only=True)
class Link:
    """One server, seen by a transport."""

    client: Client
    """Leads to the server."""
    transport: TransportName
    """Which way."""
    timeout_s: float
    """Seconds that one load may take."""
    ranks: int = 1
    """Processes of the server that hold shares of the weights (tensor parallelism)."""
    device: str = "cpu"
    """Where the server computes."""
    checkpoint: Path | None = None
    """The server's model directory, where this machine can read it."""
    directory: Path | None = None
    """Where files are written; `None` is the system's directory for temporary files."""
    touched: bool = False
    """Whether the server was asked to load something since this was last set to false."""

    async def load(self, path: str, payload: Mapping[str, Any]) -> None:
        """Ask the server to load weights.

        Raises:
            EngineError: It refused or did not answer.
        """
        self.touched = True
        await self.client.post(path, payload, timeout_s=self.timeout_s)


class Transport(Protocol):
    """A way for weights to reach a server."""

    link: Link
    """The server."""
    bracketed: bool
    """Whether newer servers want `/begin_weight_update` before and `/end_weight_update` after."""

    def __init__(self, link: Link) -> None: ...

    async def send(self, pieces: Iterator[Piece], version: str) -> None:
        """Bring the weights into the server, under this name with the last of them."""
        ...

    async def aclose(self) -> None:
        """Give back what is held between updates."""
        ...


def buckets(pieces: Iterable[Piece], limit: int = BUCKET_BYTES) -> Iterator[tuple[list[Piece], bool]]:
    """Cut a stream of tensors into lists of at most `limit` bytes, or of one tensor, and say which is the last.

    Example:
        >>> pieces = [("a", torch.zeros(4)), ("b", torch.zeros(4)), ("c", torch.zeros(9))]
        >>> [([name for name, _ in bucket], last) for bucket, last in buckets(pieces, limit=32)]
        [(['a', 'b'], False), (['c'], True)]
    """
    bucket: list[Piece] = []
    size = 0
    for name, tensor in pieces:
        if bucket and size + tensor.nbytes > limit:
            yield bucket, False
            bucket, size = [], 0
        bucket.append((name, tensor))
        size += tensor.nbytes
    if bucket:
        yield bucket, True


async def in_thread(function: Callable[[], T], *, on_cancel: Callable[[], object] = lambda: None) -> T:
    """Run a function in a thread; a cancelled caller waits for it, since it reads tensors that training changes."""
    return await uncancelled(asyncio.to_thread(function), patience_s=GRACE_S, on_cancel=on_cancel)
