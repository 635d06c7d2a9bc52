"""From groups to rows: advantages, loss masks, flat records."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Literal

from icrl.train.gap import exact_spans
from icrl.trajectory import Group, MaskPolicy, Row, Trajectory, policy_tokens

__all__ = ["AdvantageScale", "advantages", "rows_of"]

AdvantageScale = Literal["none", "std"]
"""Divide by nothing (Dr. GRPO, arXiv 2503.20783), or by the group's standard deviation (GRPO, arXiv 2402.03300)."""

STD_FLOOR = 1e-4
"""Added to the standard deviation, as in TRL."""


def advantages(rewards: Sequence[float], *, scale: AdvantageScale = "none") -> list[float]:
    """Compare each reward with its group's mean (GRPO, arXiv 2402.03300, eq. 3).

    Args:
        rewards: [G] rewards of one group.
        scale: What to divide by.

    Returns:
        [G] advantages; their sum is zero.

    Example:
        >>> advantages([1.0, 0.0, 0.0, 1.0])
        [0.5, -0.5, -0.5, 0.5]
    """
    if not rewards:
        return []
    mean = sum(rewards) / len(rewards)
    centred = [reward - mean for reward in rewards]
    if scale == "none":
        return centred
    # TRL's standard deviation is the sample's (n - 1).
    variance = sum(c * c for c in centred) / max(1, len(rewards) - 1)
    return [c / (variance**0.5 + STD_FLOOR) for c in centred]


def rows_of(
    groups: Iterable[Group],
    *,
    temperature: float,
    scale: AdvantageScale = "none",
    mask: MaskPolicy = policy_tokens,
    informative_only: bool = True,
    begun_under: int | None = None,
) -> list[Row]:
    """Flatten groups into training rows; trajectories that infrastructure broke are left out.

    Args:
        groups: Scored groups.
        temperature: Temperature they were sampled at.
        scale: How to scale advantages.
        mask: Which provenance is trained.
        informative_only: Leave out groups whose rewards are all equal, which have no gradient without a KL term.
        begun_under: Weight version that the engine had before all of them were begun; `None` if that is not known.

    Example:
        >>> rows_of([], temperature=1.0)
        []
    """
    rows: list[Row] = []
    for number, group in enumerate(groups):
        if informative_only and not group.informative:
            continue
        scored = list(group.scored())
        values = advantages([reward for _, reward in scored], scale=scale)
        for (trajectory, reward), advantage in zip(scored, values, strict=True):
            row = _row(trajectory, reward, advantage, group.task.id or str(number), temperature, mask)
            row = replace(row, exact=exact_spans(trajectory, begun_under))
            if any(row.loss_mask):
                rows.append(row)
    return rows


def _row(
    trajectory: Trajectory, reward: float, advantage: float, group_id: str, temperature: float, mask: MaskPolicy
) -> Row:
    return Row(
        token_ids=trajectory.ids,
        prompt_length=trajectory.prompt_length,
        loss_mask=trajectory.mask(mask),
        logprobs=trajectory.logprobs(),
        reward=reward,
        advantage=advantage,
        group_id=group_id,
        trajectory_id=trajectory.id,
        index=0,
        temperature=temperature,
        stop_reason=trajectory.stop_reason,
        weight_versions=trajectory.versions(),
        shared_prefix=trajectory.shared_prefix,
        meta={"shots": trajectory.shots},
    )
