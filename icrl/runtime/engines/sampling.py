"""Sampling with counter-based random streams, vectorised over rows.

A token depends on its request's (seed, position) and on its distribution, never on what else is in the batch: the
uniform number comes from a hash, and the token is the inverse of the cumulative distribution over vocabulary order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Draw", "as_seeds", "sample", "uniforms"]

BLOCK = 64
"""Tokens whose probabilities are summed before cumulation; one pass over the vocabulary instead of two."""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MASK = (1 << 64) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """How the next token of each of R rows is drawn."""

    temperatures: NDArray[np.float32]
    """[R] 0 means greedy."""
    seeds: NDArray[np.uint64]
    """[R] streams."""
    positions: NDArray[np.uint64]
    """[R] index of the token within its generation."""
    top_ks: NDArray[np.int64]
    """[R] 0 keeps all."""
    top_ps: NDArray[np.float64]
    """[R] 1 keeps all."""


def uniforms(seeds: NDArray[np.uint64], positions: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Hash (seed, position) to numbers in [0, 1).

    The mixer is splitmix64's finaliser (Steele, Lea and Flood 2014), once for the seed and once for its sequence.

    Example:
        >>> seeds = np.array([7, 7, 8], dtype=np.uint64)
        >>> uniforms(seeds, np.array([0, 1, 0], dtype=np.uint64)).round(3).tolist()
        [0.722, 0.65, 0.267]
    """
    bits = _mix(_mix(seeds + _GOLDEN) + (positions + np.uint64(1)) * _GOLDEN)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def as_seeds(seeds: list[int]) -> NDArray[np.uint64]:
    """Reduce any integers to 64 bits."""
    return np.array([seed & _MASK for seed in seeds], dtype=np.uint64)


def sample(logits_RV: Tensor, draw: Draw) -> tuple[list[int], list[float]]:
    """Draw one token a row.

    Returns:
        The tokens, and log-softmax(logits / temperature) of each before top-k and top-p (unscaled at 0).
    """
    scale = np.where(draw.temperatures > 0, draw.temperatures, 1)
    logits_RV = logits_RV.float()
    if (scale != 1).any():
        logits_RV = logits_RV / torch.from_numpy(scale[:, None]).to(logits_RV.device)
    probability_RV = logits_RV.softmax(-1)
    tokens_R1 = _choose(probability_RV, draw)
    return tokens_R1[:, 0].tolist(), probability_RV.gather(1, tokens_R1)[:, 0].log().tolist()


def _choose(probability_RV: Tensor, draw: Draw) -> Tensor:
    """Take the likeliest token of greedy rows and a random one of the others."""
    greedy = draw.temperatures == 0
    if greedy.all():
        return probability_RV.argmax(-1, keepdim=True)
    drawn_R1 = _invert(_restrict(probability_RV, draw), uniforms(draw.seeds, draw.positions))
    if greedy.any():
        rows = torch.from_numpy(np.flatnonzero(greedy)).to(drawn_R1.device)
        drawn_R1[rows] = probability_RV[rows].argmax(-1, keepdim=True)
    return drawn_R1


def _invert(mass_RV: Tensor, uniform_R: NDArray[np.float64]) -> Tensor:
    """Invert the cumulative distribution in two levels: which block, then which token of it."""
    R, V = mass_RV.shape
    mass_RNB = F.pad(mass_RV, (0, -V % BLOCK)).view(R, -1, BLOCK)
    cumulative_RN = mass_RNB.sum(-1).double().cumsum(-1)
    target_R1 = torch.from_numpy(uniform_R[:, None]).to(mass_RV.device) * cumulative_RN[:, -1:]
    block_R1 = _first_above(cumulative_RN, target_R1)
    before_R1 = F.pad(cumulative_RN, (1, 0)).gather(1, block_R1)
    inside_RB = mass_RNB[torch.arange(R, device=mass_RV.device), block_R1[:, 0]].double().cumsum(-1)
    return block_R1 * BLOCK + _first_above(inside_RB, target_R1 - before_R1)


def _first_above(cumulative: Tensor, target: Tensor) -> Tensor:
    """Find the first entry above the target; a target that rounding pushed past the end means the last with mass."""
    below_end = cumulative[:, -1:] * (1 - 2.0**-52)
    return torch.searchsorted(cumulative, torch.minimum(target, below_end), right=True)


def _restrict(mass_RV: Tensor, draw: Draw) -> Tensor:
    """Remove what top-k and then top-p exclude, in the rows that ask for it."""
    asking = np.flatnonzero((draw.temperatures > 0) & ((draw.top_ks > 0) | (draw.top_ps < 1)))
    if not asking.size:
        return mass_RV
    rows = torch.from_numpy(asking).to(mass_RV.device)
    sorted_AV, order_AV = mass_RV[rows].sort(dim=-1, descending=True, stable=True)
    V = mass_RV.size(1)
    keep = np.where(draw.top_ks[asking] > 0, draw.top_ks[asking], V)
    rank_V = torch.arange(V, device=mass_RV.device)
    sorted_AV = sorted_AV.masked_fill_(rank_V >= torch.from_numpy(keep[:, None]).to(rank_V.device), 0)
    cumulative_AV = sorted_AV.double().cumsum(-1)
    limit_A1 = torch.from_numpy(draw.top_ps[asking, None]).to(rank_V.device) * cumulative_AV[:, -1:]
    # A token stays while those before it fall short of top_p, so the first always stays.
    sorted_AV = sorted_AV.masked_fill_(F.pad(cumulative_AV, (1, -1)) >= limit_A1, 0)
    return mass_RV.index_put((rows,), torch.zeros_like(sorted_AV).scatter_(1, order_AV, sorted_AV))
