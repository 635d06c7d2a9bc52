"""From the requests of one step to a flattened batch, and the attention layout that goes with it.

Legend of suffixes: see `attention`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from icrl.runtime.engines.attention import DenseKeys, Keys, Shared, attend, heads_first, tokens_first
from icrl.runtime.engines.ragged import RaggedKeys
from icrl.runtime.engines.request import Prefix, Request
from icrl.runtime.engines.slots import ALIGNMENT, SlotStore

__all__ = ["Batch", "flatten"]

MIN_ROWS = 4
"""With fewer rows a CPU's matrix product takes another path and rounds differently; batches are padded to this."""

MAX_SCORES = 1 << 26
"""Attention scores of one block, in elements a query head; larger joins are split."""


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Rows whose attention is computed together, as a rectangle of cells."""

    cells: Tensor | None
    """[B, T] flattened token of each cell; `None`: they are the first B tokens in order."""
    keys: Callable[[int], Keys]
    """Keys and values of the rows in a layer."""
    size: tuple[int, int]
    """B and T."""
    prefixes: tuple[tuple[Tensor | None, Prefix], ...]
    """Rows (`None`: all) and the prefix that they share."""
    real: Tensor | None
    """Cells that are tokens, as indices into the flattened rectangle; `None`: all."""
    tokens: Tensor | None
    """The flattened token of each of those."""


@dataclass(frozen=True, slots=True, eq=False)
class SlotLayout:
    """Writes new keys and values into cache slots, then attends to the slots; see `attention.Layout`."""

    store: SlotStore
    """The slots."""
    slots: Tensor
    """[N] where each token's keys and values go."""
    positions: Tensor
    """[N] where within the slot."""
    blocks: tuple[Block, ...]
    """Attention, block by block."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Compute one layer's attention; see `attention.Layout`."""
        count = self.slots.numel()
        new = [x[0, :, :count].transpose(0, 1) for x in (key, value)]
        self.store.write(layer, self.slots, self.positions, *new)
        query_NHD = (query[0] * scaling).transpose(0, 1)
        out_NHD = query_NHD.new_zeros((*query_NHD.shape[:2], value.size(-1)))
        for block in self.blocks:
            cells = self._attend(layer, block, query_NHD, key.size(1)).flatten(0, 1)
            out_NHD[block.tokens] = cells if block.real is None else cells[block.real]
        return out_NHD[None]

    def _attend(self, layer: int, block: Block, query_NHD: Tensor, kv_heads: int) -> Tensor:
        B, T = block.size
        query_BTHD = query_NHD[:B, None] if block.cells is None else query_NHD[block.cells]
        shared = [Shared(rows, *prefix.layers[layer]) for rows, prefix in block.prefixes]
        out = attend(heads_first(query_BTHD, kv_heads), block.keys(layer), shared)
        return tokens_first(out, T)


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """One forward pass."""

    ids: Tensor
    """[N] tokens, all requests one after another."""
    positions: Tensor
    """[N] their positions in their sequences."""
    layout: SlotLayout
    """What they look at."""
    ends: list[int]
    """Flattened index of each request's last token."""

    def run(self, model: Any, wanted: list[int]) -> Tensor:
        """Run the model and return the logits [R, V] after the wanted R flattened tokens."""
        padded = wanted + wanted[-1:] * (MIN_ROWS - len(wanted))
        out = model(
            input_ids=self.ids[None],
            position_ids=self.positions[None],
            use_cache=False,
            logits_to_keep=torch.tensor(padded, dtype=torch.long, device=self.ids.device),
            icrl_layout=self.layout,
        )
        logits: Tensor = out.logits[0, : len(wanted)]
        return logits


def flatten(
    store: SlotStore, decoding: Sequence[Request], joining: Sequence[tuple[Request, int]], dtype: torch.dtype
) -> Batch:
    """Lay out one step.

    Args:
        store: The slots.
        decoding: Requests with one pending token, in order of their slots.
        joining: Requests with more, and how many of those to run.
        dtype: Type of the scores.
    """
    runs = [*((request, 1) for request in decoding), *joining]
    ids = [token for request, n in runs for token in request.ids[request.computed : request.computed + n]]
    counts = np.array([n for _, n in runs])
    ends = counts.cumsum()
    within = np.arange(len(ids)) - np.repeat(ends - counts, counts)
    positions = np.repeat([request.computed for request, _ in runs], counts) + within
    offsets = np.repeat([request.offset for request, _ in runs], counts)
    slots = np.repeat([request.slot for request, _ in runs], counts)
    blocks = [_decode_block(store, decoding, dtype)] if decoding else []
    starts = dict(zip((id(request) for request, _ in runs), (ends - counts).tolist(), strict=True))
    blocks.extend(_join_block(group, starts, store, dtype) for group in _groups(joining))
    padding = max(0, MIN_ROWS - len(ids))
    device = store.device
    return Batch(
        ids=torch.tensor(ids + ids[-1:] * padding, device=device),
        positions=_tensor(np.pad(positions, (0, padding), mode="edge"), device),
        layout=SlotLayout(store, _tensor(slots, device), _tensor(positions - offsets, device), tuple(blocks)),
        ends=(ends - 1).tolist(),
    )


def _tensor(values: NDArray[Any], device: torch.device) -> Tensor:
    return torch.from_numpy(values).to(device)


def _aligned(length: int) -> int:
    return -(-length // ALIGNMENT) * ALIGNMENT


def _decode_block(store: SlotStore, requests: Sequence[Request], dtype: torch.dtype) -> Block:
    if store.ragged:
        return _ragged_block(store, requests)
    return _range_block(store, requests, dtype)


def _ragged_block(store: SlotStore, requests: Sequence[Request]) -> Block:
    """Attend from one token a row, each to exactly its own keys."""
    count = len(requests)
    rows = np.minimum(np.arange(max(count, MIN_ROWS)), count - 1)
    slots = np.array([request.slot for request in requests])[rows]
    lengths = np.array([request.own_tokens + 1 for request in requests])[rows]
    full = count == len(rows)
    return Block(
        cells=None if full else _tensor(rows[:, None], store.device),
        keys=partial(_ragged_keys, store, slots, lengths, _aligned(int(lengths.max()))),
        size=(len(rows), 1),
        prefixes=_prefixes(requests, np.arange(count), store.device),
        real=None if full else torch.arange(count),
        tokens=torch.arange(count),
    )


def _ragged_keys(
    store: SlotStore, slots: NDArray[np.int64], lengths: NDArray[np.int64], longest: int, layer: int
) -> Keys:
    keys, values = store.layer(layer)
    return RaggedKeys(keys, values, slots, lengths, longest)


def _dense_keys(store: SlotStore, slots: slice | Tensor, mask: Tensor, layer: int) -> Keys:
    keys, values = store.layer(layer)
    length = mask.size(2)
    return DenseKeys(keys[slots, :, :length], values[slots, :, :length], mask)


def _range_block(store: SlotStore, requests: Sequence[Request], dtype: torch.dtype) -> Block:
    """Attend over the range of slots from the first to the last request; idle ones in between are wasted work."""
    first, stop = requests[0].slot, requests[-1].slot + 1
    if stop - first < MIN_ROWS:
        first = max(0, stop - MIN_ROWS)
        stop = first + MIN_ROWS
    rows = np.array([request.slot - first for request in requests])
    visible = np.ones((stop - first, 1), dtype=np.int64)
    visible[rows, 0] = [request.own_tokens + 1 for request in requests]
    cells = np.zeros((stop - first, 1), dtype=np.int64)
    cells[rows, 0] = np.arange(len(requests))
    full = len(requests) == stop - first
    device = store.device
    return Block(
        cells=None if full else _tensor(cells, device),
        keys=partial(_dense_keys, store, slice(first, stop), _mask(visible, dtype, device)),
        size=(stop - first, 1),
        prefixes=_prefixes(requests, rows, device),
        real=None if full else _tensor(rows, device),
        tokens=torch.arange(len(requests), device=device),
    )


def _mask(visible_BT: NDArray[np.int64], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Let each cell see so many of its row's keys: [B, T, L]."""
    length = _aligned(int(visible_BT.max()))
    hidden = np.arange(length) >= visible_BT[..., None]
    return torch.zeros(hidden.shape, dtype=dtype, device=device).masked_fill_(_tensor(hidden, device), -torch.inf)


def _prefixes(
    requests: Sequence[Request], rows: NDArray[np.int64], device: torch.device
) -> tuple[tuple[Tensor | None, Prefix], ...]:
    """Group rows by prefix. Idle rows may follow any, their result is dropped."""
    members: dict[int, list[int]] = {}
    by_id: dict[int, Prefix] = {}
    for request, row in zip(requests, rows.tolist(), strict=True):
        if request.prefix is not None:
            members.setdefault(id(request.prefix), []).append(row)
            by_id[id(request.prefix)] = request.prefix
    if len(members) == 1 and len(next(iter(members.values()))) == len(requests):
        return ((None, next(iter(by_id.values()))),)
    padded = {key: [*group, *group[-1:] * (MIN_ROWS - len(group))] for key, group in members.items()}
    return tuple((torch.tensor(group, device=device), by_id[key]) for key, group in padded.items())


def _groups(joining: Sequence[tuple[Request, int]]) -> list[list[tuple[Request, int]]]:
    """Split joining requests so that a padded rectangle is at most twice its tokens, and its scores are bounded."""
    groups: list[list[tuple[Request, int]]] = []
    for request, n in sorted(joining, key=lambda run: run[1]):
        group = groups[-1] if groups else []
        longest = max([r.own_tokens + m for r, m in group] + [request.own_tokens + n])
        if group and n <= max(2 * group[0][1], MIN_ROWS) and (len(group) + 1) * n * longest <= MAX_SCORES:
            group.append((request, n))
        else:
            groups.append([(request, n)])
    return groups


def _join_block(
    group: list[tuple[Request, int]], starts: dict[int, int], store: SlotStore, dtype: torch.dtype
) -> Block:
    """Attend from several tokens a row, causally; rows are padded on the right with their last token."""
    counts = np.array([n for _, n in group])
    first = np.array([starts[id(request)] for request, _ in group])
    own = np.array([request.own_tokens for request, _ in group])
    column = np.minimum(np.arange(max(counts.max(), MIN_ROWS)), counts[:, None] - 1)
    cells = first[:, None] + column
    real = np.flatnonzero(np.arange(column.shape[1]) < counts[:, None])
    mask = _mask(own[:, None] + column + 1, dtype, store.device)
    requests = [request for request, _ in group]
    slots = torch.tensor([request.slot for request in requests], device=store.device)
    return Block(
        cells=_tensor(cells, store.device),
        keys=partial(_dense_keys, store, slots, mask),
        size=column.shape,
        prefixes=_prefixes(requests, np.arange(len(requests)), store.device),
        real=_tensor(real, store.device),
        tokens=_tensor(cells.reshape(-1)[real], store.device),
    )
