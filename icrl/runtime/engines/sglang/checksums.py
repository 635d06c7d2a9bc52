"""Compares the tensors in a server with those that were sent, by hash.

A server on a CPU reports, for every parameter, the first 8 bytes of the SHA-256 of its memory. Its parameters are
those of the checkpoint, except that the projections of queries, keys and values are one, that so are those of the
gate and upwards in the feed-forward part, and that tables of the vocabulary get zero rows. Servers on accelerators
hash differently, and tensor-parallel ones hold shares; those cannot be compared here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping

import torch

from icrl.errors import WeightSyncError
from icrl.runtime.engines.sglang.transports.link import Piece

__all__ = ["Checksums"]

FUSED = {
    "q_proj": ("qkv_proj", 0, 3),
    "k_proj": ("qkv_proj", 1, 3),
    "v_proj": ("qkv_proj", 2, 3),
    "gate_proj": ("gate_up_proj", 0, 2),
    "up_proj": ("gate_up_proj", 1, 2),
}
"""Of a projection: the fused one, its place there, and how many there are."""

TABLES = ("embed_tokens.weight", "lm_head.weight")
"""Tensors with a row for every token."""

ROWS = 64
"""Their number of rows is rounded up to a multiple of this."""

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""Precisions that a server may hold its weights in."""


class Checksums:
    """Hashes of what passes by, in every precision that the server may have.

    Example:
        >>> sums = Checksums()
        >>> pieces = [("norm.weight", torch.ones(2))]
        >>> [name for name, _ in sums.watch(iter(pieces))]
        ['norm.weight']
        >>> sums.compare({"norm.weight": "0000000000000000"})
        Traceback (most recent call last):
        icrl.errors.WeightSyncError: the server's norm.weight is not what was sent (1 of 1 differ)
    """

    def __init__(self) -> None:
        self._sums: dict[str, frozenset[str]] = {}
        self._parts: dict[str, dict[int, torch.Tensor]] = {}

    def watch(self, pieces: Iterator[Piece]) -> Iterator[Piece]:
        """Hand the pieces on, and remember their hashes."""
        for name, tensor in pieces:
            self._sums[name] = _hashes([tensor])
            if name.endswith(TABLES):
                self._sums[name] |= _hashes([tensor, tensor.new_zeros(-len(tensor) % ROWS, *tensor.shape[1:])])
            self._fuse(name, tensor)
            yield name, tensor

    def compare(self, server: Mapping[str, str]) -> None:
        """Compare with the server's hashes.

        Raises:
            WeightSyncError: A hash differs, is of a parameter that is laid out in a way unknown here, or there is none.
        """
        if not server:
            raise WeightSyncError("the server names no checksums, so nothing can be compared; use verify=False")
        unknown = [name for name in server if name not in self._sums]
        if unknown:
            raise WeightSyncError(
                f"the server's {unknown[0]} ({len(unknown)} such) is none of the tensors that were sent, nor a known "
                "combination of them; this model cannot be verified, use verify=False"
            )
        wrong = [name for name, value in server.items() if value not in self._sums[name]]
        if wrong:
            raise WeightSyncError(
                f"the server's {wrong[0]} is not what was sent ({len(wrong)} of {len(server)} differ)"
            )

    def _fuse(self, name: str, tensor: torch.Tensor) -> None:
        module, _, kind = name.rpartition(".")
        parent, _, projection = module.rpartition(".")
        if projection not in FUSED:
            return
        fused, place, total = FUSED[projection]
        target = f"{parent}.{fused}.{kind}"
        parts = self._parts.setdefault(target, {})
        parts[place] = tensor
        if len(parts) == total:
            self._sums[target] = _hashes([parts[i] for i in range(total)])
            del self._parts[target]


def _hashes(tensors: list[torch.Tensor]) -> frozenset[str]:
    return frozenset(_hash([tensor.to("cpu", dtype) for tensor in tensors]) for dtype in DTYPES)


def _hash(tensors: list[torch.Tensor]) -> str:
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return found.digest()[:8].hex()
