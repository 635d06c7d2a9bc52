"""One attention function for the in-process engine and for the trainer, registered with transformers.

A forward pass gets its tokens *flattened*: all sequences of a batch lie one after another in a single row with
explicit position ids, so that no linear layer sees padding. What may look at what is decided here, by the `layout`
that travels to the attention function through the model's keyword arguments. Two layouts exist: `SlotLayout` of the
engine (keys and values live in cache slots) and `PackedLayout` of the trainer (rows after one shared prefix,
differentiable).

Legend of suffixes: B rows, N flattened tokens, T tokens of a row (padded), H query heads, K key-value heads,
M queries a key-value head (H / K * T), L keys of a row, P prefix tokens, D head width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from icrl.errors import ConfigError
from icrl.runtime.engines.architecture import refusal

__all__ = [
    "ATTENTION",
    "DenseKeys",
    "Keys",
    "Layout",
    "Shared",
    "attend",
    "heads_first",
    "install",
    "our_attention",
    "shared_prefix_hidden",
    "supports_attention",
    "tokens_first",
]

ATTENTION = "icrl"
"""Name under which transformers knows the function."""

UNSUPPORTED = ("softcap", "s_aux", "position_bias", "sliding_window")
"""Keyword arguments by which a model asks its attention for something that full attention does not do."""


class Layout(Protocol):
    """Knows which token of a flattened batch may look at what."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Compute one layer's attention: [1, H, N, D], [1, K, N, D] twice -> [1, N, H, D]."""
        ...


class Keys(Protocol):
    """Each row's own keys and values."""

    def scores(self, query_BKMD: Tensor) -> Tensor:
        """Multiply queries with keys, minus infinity where a query may not look: [B, K, M, L]."""
        ...

    def weigh(self, weights_BKML: Tensor) -> Tensor:
        """Sum values by weight: [B, K, M, D]."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class DenseKeys:
    """Keys and values as a rectangle, with a mask; differentiable."""

    keys: Tensor
    """[B, K, L, D]."""
    values: Tensor
    """[B, K, L, D]."""
    mask: Tensor
    """[B or 1, T, L] added to the scores; the M queries of a key-value head are its query heads times T tokens."""

    def scores(self, query_BKMD: Tensor) -> Tensor:
        """Multiply queries with keys and add the mask: [B, K, M, L]."""
        B, K, M, D = query_BKMD.shape
        T, L = self.mask.shape[1:]
        keys = self.keys.reshape(B * K, L, D).transpose(1, 2)
        scores = torch.bmm(query_BKMD.reshape(B * K, M, D), keys).view(B, K, M // T, T, L)
        return (scores + self.mask[:, None, None]).view(B, K, M, L)

    def weigh(self, weights_BKML: Tensor) -> Tensor:
        """Sum values by weight: [B, K, M, D]."""
        B, K, M, L = weights_BKML.shape
        out = torch.bmm(weights_BKML.reshape(B * K, M, L), self.values.reshape(B * K, L, -1))
        return out.view(B, K, M, -1)


@dataclass(frozen=True, slots=True, eq=False)
class Shared:
    """Keys and values that several rows see before their own."""

    rows: Tensor | None
    """[R] numbers of those rows; `None` means all of them."""
    keys: Tensor
    """[K, P, D] keys of the shared prefix."""
    values: Tensor
    """[K, P, D] its values."""


def attend(query_BKMD: Tensor, own: Keys, shared: Sequence[Shared] = ()) -> Tensor:
    """Attend to each row's own keys and, in the same softmax, to prefixes that rows share.

    A prefix is multiplied once with the queries of all its rows instead of being repeated for each.

    Args:
        query_BKMD: Queries, scaled.
        own: Keys and values of the rows.
        shared: Prefixes; a row belongs to at most one.

    Returns:
        [B, K, M, D] weighted values.
    """
    scores_BKML = own.scores(query_BKMD)
    if not shared:
        return own.weigh(_softmax(scores_BKML, query_BKMD))
    if shared[0].rows is None:
        weights_BKML, seen_BKMD = _with_prefix(query_BKMD, scores_BKML, shared[0])
        return own.weigh(weights_BKML) + seen_BKMD
    weights_BKML = _softmax(scores_BKML, query_BKMD)
    contributions = []
    for prefix in shared:
        weights, seen = _with_prefix(query_BKMD[prefix.rows], scores_BKML[prefix.rows], prefix)
        weights_BKML[prefix.rows] = weights
        contributions.append((prefix.rows, seen))
    out_BKMD = own.weigh(weights_BKML)
    for rows, seen in contributions:
        out_BKMD[rows] = out_BKMD[rows] + seen
    return out_BKMD


def _softmax(scores: Tensor, like: Tensor) -> Tensor:
    return torch.softmax(scores, dim=-1, dtype=torch.float32).to(like.dtype)


def _with_prefix(query_BKMD: Tensor, scores_BKML: Tensor, prefix: Shared) -> tuple[Tensor, Tensor]:
    """Return the weights of own keys, and what the prefix contributes to the output."""
    B, K, M, D = query_BKMD.shape
    P = prefix.keys.size(1)
    query_KQD = query_BKMD.transpose(0, 1).reshape(K, B * M, D)
    seen_scores = torch.bmm(query_KQD, prefix.keys.transpose(1, 2)).view(K, B, M, P).transpose(0, 1)
    weights = _softmax(torch.cat((seen_scores, scores_BKML), dim=-1), query_BKMD)
    seen = torch.bmm(weights[..., :P].transpose(0, 1).reshape(K, B * M, P), prefix.values)
    return weights[..., P:], seen.view(K, B, M, -1).transpose(0, 1)


def _dispatch(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    icrl_layout: Layout | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Serve as transformers' attention interface."""
    asked = [name for name in UNSUPPORTED if kwargs.get(name) is not None]
    if asked or icrl_layout is None:
        reason = f"asks for {asked[0]}" if asked else "does not pass keyword arguments on to its attention"
        raise ConfigError(f"model: {type(module).__name__} {reason}; only full-attention decoders are supported")
    scaling = query.size(-1) ** -0.5 if scaling is None else scaling
    return icrl_layout.attend(module.layer_idx, query, key, value, scaling), None


def install(model: Any) -> list[tuple[Any, str | None]]:
    """Switch a transformers model to this attention; return its configurations with what they had before."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(ATTENTION, _dispatch)
    configs = {id(m.config): m.config for m in model.modules() if hasattr(m, "config")}.values()
    before = [(config, config._attn_implementation) for config in configs]
    for config in configs:
        config._attn_implementation = ATTENTION
    return before


@contextmanager
def our_attention(model: Any) -> Iterator[None]:
    """Switch a transformers model to this attention; its own is back when the block ends."""
    before = install(model)
    try:
        yield
    finally:
        for config, implementation in before:
            config._attn_implementation = implementation


def supports_attention(model: Any) -> bool:
    """Tell whether a transformers model is a plain full-attention decoder, which this attention can serve."""
    return refusal(model.config, type(model)) is None


@dataclass(frozen=True, slots=True, eq=False)
class PackedLayout:
    """One prefix, then rows that each see the prefix and themselves; differentiable."""

    prefix: int
    """P, tokens of the prefix; may be 0."""
    cells: Tensor
    """[B, T] flattened token of each cell of the padded rectangle of rows; padding repeats a row's last token."""
    valid: Tensor
    """[B, T] which cells are tokens."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Compute one layer's attention; see `Layout`."""
        query_NHD, key_NKD, value_NKD = (x[0].transpose(0, 1) for x in (query * scaling, key, value))
        P, T, K = self.prefix, self.cells.size(1), key_NKD.size(1)
        row_query, row_keys, row_values = (heads_first(x[self.cells], K) for x in (query_NHD, key_NKD, value_NKD))
        own = DenseKeys(row_keys, row_values, _causal(T, query))
        if not P:
            return tokens_first(attend(row_query, own), T)[self.valid][None]
        first_query, keys, values = (heads_first(x[None, :P], K) for x in (query_NHD, key_NKD, value_NKD))
        out_prefix = attend(first_query, DenseKeys(keys, values, _causal(P, query)))
        out_rows = attend(row_query, own, [Shared(None, keys[0], values[0])])
        return torch.cat((tokens_first(out_prefix, P)[0], tokens_first(out_rows, T)[self.valid]))[None]


def _causal(length: int, like: Tensor) -> Tensor:
    future = torch.ones(length, length, dtype=torch.bool, device=like.device).triu_(1)
    return torch.zeros(1, length, length, dtype=like.dtype, device=like.device).masked_fill_(future, -torch.inf)


def heads_first(x_BTHD: Tensor, kv_heads: int) -> Tensor:
    """Regroup [B, T, H, D] to [B, K, M, D]."""
    B, T, H, D = x_BTHD.shape
    grouped = x_BTHD.view(B, T, kv_heads, H // kv_heads, D).permute(0, 2, 3, 1, 4)
    return grouped.reshape(B, kv_heads, H // kv_heads * T, D)


def tokens_first(x_BKMD: Tensor, length: int) -> Tensor:
    """Undo `heads_first`: [B, K, M, D] to [B, T, H, D]."""
    B, K, M, D = x_BKMD.shape
    return x_BKMD.view(B, K, M // length, length, D).permute(0, 3, 1, 2, 4).reshape(B, length, K * (M // length), D)


def shared_prefix_hidden(model: Any, prefix_P: Tensor, rows_BT: Tensor, lengths_B: Tensor) -> Tensor:
    """Run rows that begin with the same prefix, the prefix once; gradients flow through it.

    Padding costs nothing but memory of the result: it does not enter the model.

    Args:
        model: A transformers causal language model, or a PEFT model around one.
        prefix_P: Token ids of the prefix; may be empty.
        rows_BT: Token ids of the rows after the prefix, padded on the right with anything.
        lengths_B: Tokens of each row, at least 1.

    Returns:
        [B, T, hidden] states after the final norm, from which the output embedding predicts the next token; 0 at
        padding.

    Raises:
        ConfigError: The model's attention is not plain full attention, or gradient checkpointing is on, which would
            recompute the forward with the model's other attention.
    """
    reason = refusal(model.config, type(model))
    if reason is None and getattr(model, "is_activation_checkpointing", False) and model.training:
        reason = "uses gradient checkpointing, which cannot be combined with a shared prefix"
    if reason is not None:
        raise ConfigError(f"model: {type(model).__name__} {reason}")
    trunk = (model.get_base_model() if hasattr(model, "get_base_model") else model).get_decoder()
    P, T = prefix_P.numel(), rows_BT.size(1)
    column_T = torch.arange(T, device=rows_BT.device)
    valid_BT = column_T < lengths_B[:, None]
    starts_B = lengths_B.cumsum(0) - lengths_B + P
    cells_BT = starts_B[:, None] + torch.minimum(column_T, lengths_B[:, None] - 1)
    ids_N = torch.cat((prefix_P, rows_BT[valid_BT]))
    positions_N = torch.cat((torch.arange(P, device=ids_N.device), (column_T + P).expand_as(valid_BT)[valid_BT]))
    with our_attention(trunk):
        out = trunk(
            input_ids=ids_N[None],
            position_ids=positions_N[None],
            use_cache=False,
            icrl_layout=PackedLayout(P, cells_BT, valid_BT),
        )
    hidden_NH: Tensor = out.last_hidden_state[0, P:]
    return hidden_NH.new_zeros((*valid_BT.shape, hidden_NH.size(-1))).masked_scatter(valid_BT[..., None], hidden_NH)
