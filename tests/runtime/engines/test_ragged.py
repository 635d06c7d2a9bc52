from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from icrl.runtime.engines import ragged
from icrl.runtime.engines.attention import DenseKeys, attend
from icrl.runtime.engines.ragged import RaggedKeys


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=6),
    st.integers(1, 3),
    st.integers(1, 3),
    st.sampled_from([8, 13, 64]),
    st.integers(0, 99),
)
def test_compiled_loops_equal_the_dense_products(
    lengths: list[int], kv_heads: int, queries: int, width: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows = len(lengths)
    keys, values = torch.randn(2, 9, kv_heads, 40, width, generator=generator)
    slots = torch.randperm(9, generator=generator)[:rows]
    query = torch.randn(rows, kv_heads, queries, width, generator=generator)
    mask = torch.zeros(rows, 1, 40).masked_fill_(torch.arange(40) >= torch.tensor(lengths)[:, None, None], -torch.inf)
    own = RaggedKeys(keys, values, slots.numpy(), np.array(lengths), 40)
    dense = DenseKeys(keys[slots], values[slots], mask)
    assert torch.allclose(own.scores(query), dense.scores(query), atol=1e-4)
    assert torch.allclose(attend(query, own), attend(query, dense), atol=1e-5)


def test_the_loops_are_plain_python_too(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(1)
    keys, values = torch.randn(2, 3, 1, 8, 4, generator=generator)
    query = torch.randn(3, 1, 2, 4, generator=generator)
    own = RaggedKeys(keys, values, np.arange(3), np.array([1, 8, 6]), 8)
    compiled = attend(query, own)
    monkeypatch.setattr(ragged, "_compiled", lambda function: function)
    assert torch.allclose(attend(query, own), compiled, atol=1e-6)


def test_loops_are_compiled_anew_where_nothing_can_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    import numba

    def njit(cache: bool = False, **_: bool) -> Any:
        if cache:
            raise RuntimeError("cannot cache")
        return lambda function: function

    monkeypatch.setattr(numba, "njit", njit)
    assert ragged._compiled.__wrapped__(ragged._scores) is ragged._scores


def test_a_row_does_not_depend_on_the_others() -> None:
    generator = torch.Generator().manual_seed(0)
    keys, values = torch.randn(2, 8, 2, 64, 16, generator=generator)
    query, lengths = torch.randn(8, 2, 1, 16, generator=generator), np.array([3, 64, 17, 40, 1, 33, 5, 9])
    together = attend(query, RaggedKeys(keys, values, np.arange(8), lengths, 64))
    for row, length in enumerate(lengths):
        alone = RaggedKeys(keys, values, np.array([row]), lengths[row : row + 1], -(-int(length) // 32) * 32)
        assert torch.equal(attend(query[row : row + 1], alone)[0], together[row])
