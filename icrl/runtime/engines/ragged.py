"""Products with keys and values of unequal lengths, compiled by numba where it is installed.

Decoding on a CPU is bound by reading the cache. A batched matrix product reads every row as far as the longest one;
these loops read each row as far as it goes, which more than halves attention's part of a decode step at 128 rows.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["RaggedKeys", "available"]

Array = NDArray[np.float32]
Numbers = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class RaggedKeys:
    """Keys and values in cache slots, seen by one token a row; float32 on a CPU."""

    keys: Tensor
    """[slots, K, capacity, D]."""
    values: Tensor
    """[slots, K, capacity, D]."""
    slots: Numbers
    """[B] slot of each row."""
    lengths: Numbers
    """[B] keys that each row sees."""
    longest: int
    """L, at least the largest length."""

    def scores(self, query_BKMD: Tensor) -> Tensor:
        """Multiply queries with keys: [B, K, M, L], minus infinity past a row's length."""
        B, K, M, _ = query_BKMD.shape
        out = torch.full((B, K, M, self.longest), -torch.inf)
        multiply = _compiled(_scores)
        multiply(query_BKMD.contiguous().numpy(), self.keys.numpy(), self.slots, self.lengths, out.numpy())
        return out

    def weigh(self, weights_BKML: Tensor) -> Tensor:
        """Sum values by weight: [B, K, M, D]."""
        B, K, M, _ = weights_BKML.shape
        out = torch.zeros((B, K, M, self.values.size(3)))
        _compiled(_weigh)(weights_BKML.numpy(), self.values.numpy(), self.slots, self.lengths, out.numpy())
        return out


def available() -> bool:
    """Tell whether numba is installed."""
    return importlib.util.find_spec("numba") is not None


@cache
def _compiled(function: Callable[..., None]) -> Callable[..., None]:
    """Compile a loop for this machine; the result is kept on disk where possible, so that only one process waits."""
    import numba

    loop: Callable[..., None]
    try:
        loop = numba.njit(fastmath=True, nogil=True, cache=True)(function)
    except RuntimeError:  # there is no directory that can be written to
        loop = numba.njit(fastmath=True, nogil=True)(function)
    return loop


def _scores(query: Array, keys: Array, slots: Numbers, lengths: Numbers, out: Array) -> None:
    rows, kv_heads, queries, width = query.shape
    for row in range(rows):
        for head in range(kv_heads):
            for position in range(lengths[row]):
                for q in range(queries):
                    total = np.float32(0)
                    for i in range(width):
                        total += query[row, head, q, i] * keys[slots[row], head, position, i]
                    out[row, head, q, position] = total


def _weigh(weights: Array, values: Array, slots: Numbers, lengths: Numbers, out: Array) -> None:
    rows, kv_heads, queries, _ = weights.shape
    width = values.shape[3]
    for row in range(rows):
        for head in range(kv_heads):
            seen = values[slots[row], head]
            for q in range(queries):
                weight, total = weights[row, head, q], out[row, head, q]
                whole = lengths[row] // 4 * 4
                # Four positions at a time: the sum is loaded and stored once for four values.
                for p in range(0, whole, 4):
                    a, b, c, d = weight[p], weight[p + 1], weight[p + 2], weight[p + 3]
                    for i in range(width):
                        total[i] += a * seen[p, i] + b * seen[p + 1, i] + c * seen[p + 2, i] + d * seen[p + 3, i]
                for p in range(whole, lengths[row]):
                    for i in range(width):
                        total[i] += weight[p] * seen[p, i]
