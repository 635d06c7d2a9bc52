from __future__ import annotations

import json
from array import array
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icrl.errors import EngineError
from icrl.runtime.engines.protocol import EngineInfo
from icrl.runtime.engines.sglang.prompts import BYTES_PER_ID, Prompts

INFO = EngineInfo(name="e", vocab_size=100, context_limit=64)


def spelled(prompts: Prompts, ids: Sequence[int], session: str | None = None) -> list[int]:
    return json.loads(b"[" + prompts.spell(ids, INFO, session=session) + b"]")


IDS = st.lists(st.integers(0, 99), min_size=1, max_size=20)


@given(
    st.lists(st.tuples(IDS, st.sampled_from(["a", "b", None]), st.booleans(), st.sampled_from([list, tuple, array])))
)
def test_a_prompt_is_spelled_whatever_was_spelled_before(
    turns: list[tuple[list[int], str | None, bool, type]],
) -> None:
    prompts, last = Prompts(budget=40 * BYTES_PER_ID), {}
    for new, session, extends, kind in turns:
        ids = ((last.get(session, []) if extends else []) + new)[:63]
        given_ids = array("i", ids) if kind is array else kind(ids)
        assert spelled(prompts, given_ids, session) == ids
        last[session] = ids
    assert sum(len(ids) for name, ids in last.items() if name) * BYTES_PER_ID <= 2 * 63 * BYTES_PER_ID


def test_only_what_is_new_is_checked_and_a_changed_prefix_is_new() -> None:
    prompts = Prompts()
    spelled(prompts, [1, 2, 3], "s")
    narrow = EngineInfo(name="e", vocab_size=3, context_limit=64)
    assert prompts.spell([1, 2, 3, 2], narrow, session="s") == b"1,2,3,2"
    with pytest.raises(EngineError, match="token id 3 at position 1 is outside"):
        prompts.spell([1, 3, 3, 2], narrow, session="s")


@pytest.mark.parametrize("wrong", [100, -1, 2**31, 2**70, -(2**40)])
@pytest.mark.parametrize("session", ["s", None])
def test_an_id_outside_the_vocabulary_is_refused_at_any_place(wrong: int, session: str | None) -> None:
    prompts = Prompts()
    spelled(prompts, [1, 2], session)
    for ids in ([wrong], [1, 2, wrong], [1, wrong, 2]):
        with pytest.raises(EngineError, match="outside the vocabulary of 100"):
            prompts.spell(ids, INFO, session=session)
    assert spelled(prompts, [1, 2, 3], session) == [1, 2, 3]


@pytest.mark.parametrize("ids", [["5"], [0.5], [None]])
def test_what_is_no_id_is_refused(ids: list[object]) -> None:
    with pytest.raises(EngineError, match="no token id"):
        Prompts().spell(ids, INFO)  # type: ignore[arg-type]


def test_bounds_hold() -> None:
    with pytest.raises(EngineError, match="is empty"):
        Prompts().spell([], INFO)
    with pytest.raises(EngineError, match="the context limit is 64"):
        Prompts().spell([1] * 64, INFO, session="s")


def test_the_least_used_session_goes_when_memory_is_short() -> None:
    prompts = Prompts(budget=20 * BYTES_PER_ID)
    for name in "abc":
        spelled(prompts, [1] * 8, name)
    assert len(prompts) == 2
    prompts.forget("c")
    prompts.forget("unknown")
    assert len(prompts) == 1


def test_idle_sessions_go() -> None:
    prompts = Prompts(idle_s=0.0)
    for name in "abc":
        spelled(prompts, [1], name)
    assert len(prompts) == 0


def test_a_shared_prefix_is_spelled_once_and_is_decided_by_its_ids(monkeypatch):
    from icrl.runtime.engines.sglang import prompts as module

    spelled = []
    original = module._digits
    monkeypatch.setattr(module, "_digits", lambda ids: spelled.append(len(ids)) or original(ids))
    info = EngineInfo(name="e", vocab_size=1000, context_limit=10_000)
    prompts, shared = Prompts(), list(range(500))
    for session in ("a", "b"):
        given = [*shared, 7, 8]
        assert prompts.spell(given, info, session=session, shared_prefix=500) == ",".join(map(str, given)).encode()
    assert spelled == [500, 2]
    again = [*shared, 9]
    assert prompts.spell(again, info, session="b", shared_prefix=500) == ",".join(map(str, again)).encode()
    assert spelled[2:] == [1]
    del spelled[:]
    other = [*shared[:-1], 3, 7, 8]
    assert prompts.spell(other, info, session="c", shared_prefix=500) == ",".join(map(str, other)).encode()
    assert spelled == [500, 2]
    assert prompts.spell(shared, info, session="d", shared_prefix=500) == ",".join(map(str, shared)).encode()
    with pytest.raises(EngineError, match="token id 1000 at position 500"):
        prompts.spell([*shared, 1000], info, session="e", shared_prefix=500)
