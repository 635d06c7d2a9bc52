"""Log-probabilities of completions, with the prefix that rows share encoded once.

Rows of one step start with the same instruction and demonstrations. The ordinary forward would run them once a row;
this one runs them once a step, with gradients through their keys and values, and projects to the vocabulary only
where a completion token is predicted. The contract test holds it against the ordinary forward.

Legend of suffixes: B rows, C completion tokens (padded), T tokens after the prefix (padded), H hidden, V vocabulary,
N valid completion tokens of all rows.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch.nn import functional as F

from icrl.runtime.engines.attention import shared_prefix_hidden, supports_attention

__all__ = ["can_share_prefix", "shared_prefix_logprobs"]


def can_share_prefix(model: Any) -> bool:
    """Tell whether the model's attention can be ours: a plain full-attention decoder without checkpointing."""
    return supports_attention(model) and not getattr(model, "is_activation_checkpointing", False)


def shared_prefix_logprobs(
    model: Any,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    *,
    completion_length: int,
    prefix_lengths_B: torch.Tensor,
    temperature: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute log-probabilities and entropies of completion tokens.

    Args:
        model: A causal language model.
        input_ids: [B, P + C] prompts padded on the left, completions padded on the right.
        attention_mask: [B, P + C] 1 where there is a token.
        completion_length: C.
        prefix_lengths_B: Leading tokens of each row that other rows may share.
        temperature: Divides the logits.

    Returns:
        [B, C] log-probabilities with gradients, and [B, C] entropies in nats without; 0 at padding.
    """
    prompt_lengths = attention_mask[:, :-completion_length].sum(1).tolist()
    rows = [ids[mask.bool()] for ids, mask in zip(input_ids, attention_mask, strict=True)]
    logprobs_BC = input_ids.new_zeros((len(rows), completion_length), dtype=torch.float32)
    entropies_BC = torch.zeros_like(logprobs_BC)
    for prefix, members in _by_prefix(rows, prefix_lengths_B.tolist(), prompt_lengths).items():
        own = [rows[i][len(prefix) :] for i in members]
        prompts = [prompt_lengths[i] - len(prefix) for i in members]
        hidden_NH, targets_N = _completion_states(model, prefix, own, prompts)
        logprobs_N, entropies_N = _score(model, hidden_NH, targets_N, temperature)
        where = _positions(members, [len(o) - p for o, p in zip(own, prompts, strict=True)], input_ids.device)
        logprobs_BC = logprobs_BC.index_put(where, logprobs_N)
        entropies_BC = entropies_BC.index_put(where, entropies_N)
    return logprobs_BC, entropies_BC


def _by_prefix(
    rows: list[torch.Tensor], prefix_lengths: list[int], prompt_lengths: list[int]
) -> dict[tuple[int, ...], list[int]]:
    """Group row numbers by the prefix they share; at least one prompt token stays with the row."""
    groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        length = min(prefix_lengths[i], prompt_lengths[i] - 1)
        groups[tuple(row[:length].tolist())].append(i)
    return groups


def _completion_states(
    model: Any, prefix: tuple[int, ...], own: list[torch.Tensor], prompts: list[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the hidden state that predicts each completion token, and the token."""
    device = own[0].device
    padded_BT = torch.nn.utils.rnn.pad_sequence(own, batch_first=True)
    lengths = torch.tensor([len(o) for o in own], device=device)
    hidden_BTH = shared_prefix_hidden(model, torch.tensor(prefix, dtype=torch.long, device=device), padded_BT, lengths)
    position_T = torch.arange(padded_BT.size(1), device=device)
    starts_B = torch.tensor(prompts, device=device)
    target_BT = (position_T >= starts_B[:, None]) & (position_T < lengths[:, None])
    return hidden_BTH[:, :-1][target_BT[:, 1:]], padded_BT[target_BT]


def _score(
    model: Any, hidden_NH: torch.Tensor, targets_N: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    logits_NV = model.get_output_embeddings()(hidden_NH).float() / temperature
    logprobs_NV = F.log_softmax(logits_NV, dim=-1)
    with torch.no_grad():
        entropies_N = -(logprobs_NV.exp() * logprobs_NV).sum(-1)
    return logprobs_NV.gather(1, targets_N[:, None])[:, 0], entropies_N


def _positions(members: list[int], lengths: list[int], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    row = torch.repeat_interleave(torch.tensor(members), torch.tensor(lengths)).to(device)
    column = torch.cat([torch.arange(n) for n in lengths]).to(device)
    return row, column
