"""Inside the requests: tensors on the CPU as bytes, tensors on an accelerator as CUDA handles.

The server unpickles a list of `(name, tensor)`. For tensors on the CPU, torch would rather pass shared memory; but by
file descriptor only relatives can receive it (a stranger that tries kills the server), and by name it takes a helper
process that the server keeps alive after the trainer has ended. Bytes need neither, leave nothing behind, and reach
any machine, at the price of base64.
"""

from __future__ import annotations

import base64
import io
import pickle
from collections.abc import Iterator
from functools import partial
from multiprocessing.reduction import ForkingPickler

import torch
import torch.multiprocessing  # teaches ForkingPickler about CUDA

from icrl.runtime.engines.sglang.transports.link import Link, Piece, buckets, in_thread

__all__ = ["TensorTransport"]


class TensorTransport:
    """Needs a server on the same machine where the tensors are on an accelerator; that way is untested."""

    bracketed = True

    def __init__(self, link: Link) -> None:
        self.link = link

    async def send(self, pieces: Iterator[Piece], version: str) -> None:
        """Send one bucket after another.

        Raises:
            EngineError: The server refused or did not answer.
        """
        waiting = buckets(pieces)
        while (found := await in_thread(lambda: next(waiting, None))) is not None:
            bucket, last = [(name, _compact(tensor)) for name, tensor in found[0]], found[1]
            payload = {
                "serialized_named_tensors": await in_thread(partial(_pickled, bucket, self.link.ranks)),
                "weight_version": version if last else None,
                "flush_cache": False,
            }
            await self.link.load("/update_weights_from_tensor", payload)

    async def aclose(self) -> None:
        """Hold nothing."""


def _compact(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor with memory of its own: a view would be sent with all that it is a view of."""
    tensor = tensor.contiguous()
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def _pickled(bucket: list[Piece], ranks: int) -> list[str]:
    """Serialise a bucket once for every process of the server."""
    if any(tensor.is_cuda for _, tensor in bucket):
        # A handle is counted, and every receiver gives one back.
        return [_encoded(ForkingPickler, bucket) for _ in range(ranks)]
    return [_encoded(pickle.Pickler, bucket)] * ranks


def _encoded(pickler: type[pickle.Pickler], bucket: list[Piece]) -> str:
    out = io.BytesIO()
    pickler(out).dump(bucket)
    return base64.b64encode(out.getbuffer()).decode()
