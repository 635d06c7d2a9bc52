"""From rows to the tensors that TRL's loss takes.

Legend of suffixes: B rows, P prompt tokens (padded on the left), C completion tokens (padded on the right).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from icrl.errors import DataError
from icrl.trajectory import Row

__all__ = ["batch_of", "padded"]


def batch_of(
    rows: Sequence[Row],
    *,
    pad_id: int,
    multiple_of: int = 1,
    device: torch.device,
    version: int = 0,
    rank: int = 0,
    world: int = 1,
) -> dict[str, Any]:
    """Pad rows into the dictionary that `GRPOTrainer._compute_loss` reads (TRL 1.16).

    Args:
        rows: At least one row, each with an advantage.
        pad_id: Fills the gaps; attention never sees it.
        multiple_of: Rows with an empty loss mask are added until the count divides by this.
        device: Where the tensors live.
        version: Weight version of the trainer.
        rank: Which share of the rows to take.
        world: Shares, all of the same size.

    Returns:
        `prompt_ids`, `prompt_mask` [B, P]; `completion_ids`, `completion_mask`, `tool_mask`,
        `old_per_token_logps` [B, C]; `advantages`, `shared_prefix` [B]; `on_policy` [B, C] (whether a token was
        sampled, with its whole prefix, under the trainer's version); `num_items_in_batch` [], the trained tokens of all
        shares.

    Raises:
        DataError: A row has no advantage.
    """
    items = sum(sum(row.loss_mask) for row in rows)
    rows = padded(rows, multiple_of * world)[rank::world]
    prompts = [row.token_ids[: row.prompt_length] for row in rows]
    completions = [row.token_ids[row.prompt_length :] for row in rows]
    masks = [row.loss_mask[row.prompt_length :] for row in rows]
    logprobs = [row.logprobs[row.prompt_length :] for row in rows]
    return {
        name: tensor.to(device)
        for name, tensor in {
            "prompt_ids": _left(prompts, pad_id),
            "prompt_mask": _left([[1] * len(p) for p in prompts], 0),
            "completion_ids": _right(completions, pad_id, torch.long),
            "completion_mask": _right([[1] * len(c) for c in completions], 0, torch.long),
            "tool_mask": _right(masks, 0, torch.long),
            "old_per_token_logps": _right(logprobs, 0.0, torch.float32),
            "advantages": torch.tensor([_advantage(row) for row in rows], dtype=torch.float32),
            "shared_prefix": torch.tensor([row.shared_prefix for row in rows]),
            "on_policy": _right([_on_policy(row, version) for row in rows], 0, torch.bool),
            "num_items_in_batch": torch.tensor(items),
        }.items()
    }


def _on_policy(row: Row, version: int) -> list[bool]:
    flags = [False] * len(row.token_ids)
    for span in row.exact:
        flags[span.start : span.end] = [span.version == version] * (span.end - span.start)
    return flags[row.prompt_length :]


def _advantage(row: Row) -> float:
    if row.advantage is None:
        raise DataError(f"Row.advantage: is missing in trajectory {row.trajectory_id!r}; compute it before batching")
    return row.advantage


def padded(rows: Sequence[Row], multiple_of: int) -> list[Row]:
    """Repeat the first row with an empty mask until the count divides by `multiple_of`."""
    from dataclasses import replace

    missing = -len(rows) % multiple_of
    empty = replace(rows[0], loss_mask=(False,) * len(rows[0].token_ids), advantage=0.0) if missing else None
    return [*rows, *([empty] * missing if empty else [])]


def _left(columns: Sequence[Sequence[int]], fill: int) -> torch.Tensor:
    width = max(map(len, columns))
    return torch.tensor([[fill] * (width - len(c)) + list(c) for c in columns], dtype=torch.long)


def _right(columns: Sequence[Sequence[float]], fill: float, dtype: torch.dtype) -> torch.Tensor:
    width = max(map(len, columns))
    return torch.tensor([list(c) + [fill] * (width - len(c)) for c in columns], dtype=dtype)
