from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from icrl.runtime.engines.sampling import Draw, as_seeds, sample, uniforms


def draw(
    rows: int,
    *,
    temperature: float = 1.0,
    seeds: list[int] | None = None,
    positions: list[int] | None = None,
    top_k: int = 0,
    top_p: float = 1.0,
) -> Draw:
    return Draw(
        temperatures=np.full(rows, temperature, np.float32),
        seeds=as_seeds(seeds or list(range(rows))),
        positions=np.array(positions or [0] * rows, np.uint64),
        top_ks=np.full(rows, top_k, np.int64),
        top_ps=np.full(rows, top_p),
    )


def test_uniforms_depend_on_seed_and_position_only_and_are_spread_evenly() -> None:
    seeds, positions = as_seeds([3] * 4000), np.arange(4000, dtype=np.uint64)
    numbers = uniforms(seeds, positions)
    assert numbers[17] == uniforms(seeds[17:18], positions[17:18])[0]
    counts = np.histogram(numbers, bins=20, range=(0, 1))[0]
    assert ((counts - 200) ** 2 / 200).sum() < 43.8  # chi-squared, 19 degrees of freedom, p = 0.001
    across = uniforms(as_seeds(list(range(4000))), np.zeros(4000, np.uint64))
    assert abs(np.corrcoef(numbers, across)[0, 1]) < 0.06
    assert ((np.histogram(across, bins=20, range=(0, 1))[0] - 200) ** 2 / 200).sum() < 43.8


def test_seeds_may_be_any_integer() -> None:
    assert as_seeds([-1, 2**64 + 5]).tolist() == [2**64 - 1, 5]


@given(st.integers(0, 2**32), st.integers(2, 200), st.integers(1, 12))
def test_the_token_is_the_inverse_of_the_cumulative_distribution(seed: int, vocabulary: int, rows: int) -> None:
    logits = torch.from_numpy(np.random.default_rng(seed).normal(0, 3, (rows, vocabulary)).astype(np.float32))
    how = draw(rows, seeds=[seed + i for i in range(rows)])
    tokens, _ = sample(logits, how)
    cumulative = logits.double().softmax(-1).cumsum(-1).numpy()
    for row, (token, u) in enumerate(zip(tokens, uniforms(how.seeds, how.positions), strict=True)):
        below = cumulative[row, token - 1] if token else 0.0
        assert below - 1e-5 <= u <= cumulative[row, token] + 1e-5


@given(st.integers(0, 2**32), st.sampled_from([0.0, 0.3, 1.0, 1.7]))
def test_logprobs_are_scaled_by_temperature_and_unscaled_at_zero(seed: int, temperature: float) -> None:
    logits = torch.from_numpy(np.random.default_rng(seed).normal(0, 2, (5, 70)).astype(np.float32))
    tokens, logprobs = sample(logits, draw(5, temperature=temperature, seeds=[seed] * 5, top_k=3))
    expected = (logits / (temperature or 1)).log_softmax(-1)
    for row, (token, logprob) in enumerate(zip(tokens, logprobs, strict=True)):
        assert math.isclose(logprob, expected[row, token].item(), abs_tol=1e-5)
        if not temperature:
            assert token == logits[row].argmax().item()


def test_a_row_samples_the_same_alone_and_among_others() -> None:
    logits = torch.randn(40, 1853, generator=torch.Generator().manual_seed(0)) * 3
    together = sample(logits, draw(40))
    for row in range(40):
        assert sample(logits[row : row + 1], draw(1, seeds=[row])) == ([together[0][row]], [together[1][row]])


def test_greedy_and_random_rows_may_share_a_batch() -> None:
    logits = torch.randn(6, 50, generator=torch.Generator().manual_seed(1))
    how = draw(6)
    how.temperatures[::2] = 0
    tokens, _ = sample(logits, how)
    assert [tokens[i] for i in (0, 2, 4)] == logits[::2].argmax(-1).tolist()
    assert [tokens[i] for i in (1, 3, 5)] == sample(logits[1::2], draw(3, seeds=[1, 3, 5]))[0]


@pytest.mark.parametrize(
    ("top_k", "top_p", "kept"),
    [(3, 1.0, [0, 1, 2]), (0, 0.75, [0, 1]), (0, 0.8, [0, 1, 2]), (3, 0.5, [0]), (4, 0.6, [0, 1]), (1, 0.01, [0])],
)
def test_top_k_and_top_p_keep_the_likeliest_tokens_in_their_proportions(
    top_k: int, top_p: float, kept: list[int]
) -> None:
    probabilities = torch.tensor([0.45, 0.3, 0.15, 0.07, 0.03])
    order = torch.tensor([3, 0, 4, 1, 2])  # vocabulary order differs from rank
    logits = torch.empty(5)
    logits[order] = probabilities.log()
    rows = 6000
    tokens, logprobs = sample(logits.expand(rows, 5), draw(rows, top_k=top_k, top_p=top_p))
    share = np.bincount(tokens, minlength=5)[order] / rows
    mass = sum(probabilities[i].item() for i in kept)
    for rank in range(5):
        expected = probabilities[rank].item() / mass if rank in kept else 0.0
        assert abs(share[rank] - expected) < 4 * math.sqrt(0.25 / rows) * (expected > 0) or share[rank] == expected == 0
    assert math.isclose(logprobs[0], logits[tokens[0]].item(), abs_tol=1e-5)


def test_restrictions_touch_only_the_rows_that_ask_for_them() -> None:
    logits = torch.randn(30, 40, generator=torch.Generator().manual_seed(2))
    how = draw(30)
    how.top_ks[5] = 1
    tokens, _ = sample(logits, how)
    free, _ = sample(logits, draw(30))
    assert tokens[5] == logits[5].argmax().item()
    assert tokens[:5] + tokens[6:] == free[:5] + free[6:]


def test_tokens_without_mass_are_never_drawn() -> None:
    logits = torch.full((3000, 130), -torch.inf)
    logits[:, [0, 64, 127]] = torch.tensor([0.0, 1.0, 2.0])
    tokens, _ = sample(logits, draw(3000))
    assert set(tokens) == {0, 64, 127}
