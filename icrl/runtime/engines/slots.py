"""Keys and values of running and parked sequences, in slots of equal capacity.

Each layer has one tensor [slots, kv heads, capacity, head width] for keys and one for values. Attention over many
rows is then one batched product over a range of slots, without gathering.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["ALIGNMENT", "SlotStore"]

ALIGNMENT = 32
"""Key lengths are multiples of this: with float32 on a CPU, a row's scores then do not depend on the longest row."""


class SlotStore:
    """The tensors; who owns which slot is decided by `cache.KeyValueCache`.

    Args:
        device: Where the tensors live.
        ragged: Whether decoding reads them through `ragged.RaggedKeys`.
    """

    def __init__(self, device: torch.device, *, ragged: bool) -> None:
        self.device = device
        self.ragged = ragged
        self.slots = 0
        self.capacity = 0
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def write(self, layer: int, slots: Tensor, positions: Tensor, keys_NKD: Tensor, values_NKD: Tensor) -> None:
        """Store the keys and values of N tokens."""
        if layer not in self._layers:
            # Zeros, not garbage: masked weights are exactly 0, and 0 times an infinity would not be.
            shapes = [(self.slots, x.size(1), self.capacity, x.size(2)) for x in (keys_NKD, values_NKD)]
            first, second = (torch.zeros(shape, dtype=keys_NKD.dtype, device=self.device) for shape in shapes)
            self._layers[layer] = (first, second)
        keys, values = self._layers[layer]
        keys[slots, :, positions] = keys_NKD
        values[slots, :, positions] = values_NKD

    def layer(self, layer: int) -> tuple[Tensor, Tensor]:
        """Return a layer's keys and values: [slots, K, capacity, D] each."""
        return self._layers[layer]

    def copy_out(self, slot: int, length: int) -> list[tuple[Tensor, Tensor]]:
        """Copy one slot's first `length` keys and values: [K, P, D] each, a pair for every layer."""
        return [
            (k[slot, :, :length].clone(), v[slot, :, :length].clone()) for _, (k, v) in sorted(self._layers.items())
        ]

    def swap(self, first: Sequence[int], second: Sequence[int], length: int) -> None:
        """Exchange the contents of slots pairwise, up to `length` tokens."""
        to = torch.tensor([*first, *second], device=self.device)
        origin = torch.tensor([*second, *first], device=self.device)
        for pair in self._layers.values():
            for tensor in pair:
                tensor[to, :, :length] = tensor[origin, :, :length]

    def repack(self, order: Sequence[int], slots: int, capacity: int, length: int) -> None:
        """Make room: new tensors of `slots` x `capacity`, with the listed slots first, up to `length` tokens."""
        kept = torch.tensor(order, dtype=torch.long, device=self.device)
        for layer, pair in self._layers.items():
            grown = [torch.zeros((slots, x.size(1), capacity, x.size(3)), dtype=x.dtype, device=x.device) for x in pair]
            for new, old in zip(grown, pair, strict=True):
                new[: len(order), :, :length] = old[kept, :, :length]
            self._layers[layer] = (grown[0], grown[1])
        self.slots, self.capacity = slots, capacity
