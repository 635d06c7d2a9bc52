from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from icrl.runtime.engines.cache import KeyValueCache
from icrl.runtime.engines.request import Parked, Prefix, Request
from icrl.runtime.engines.slots import SlotStore
from icrl.types import SamplingParams


def request(ids: list[int], session: str | None = None) -> Request:
    return Request(id="", ids=ids, params=SamplingParams(), limit=9, finish=lambda _: None, session=session)


def make_cache(max_tokens: int = 512, max_slots: int = 64) -> KeyValueCache:
    return KeyValueCache(SlotStore(torch.device("cpu"), ragged=False), max_tokens=max_tokens, max_slots=max_slots)


def write(cache: KeyValueCache, holder: Request) -> None:
    """Store each token's id as its key and value, in two layers."""
    own = torch.tensor(holder.ids[holder.computed :], dtype=torch.float32)
    positions = torch.arange(holder.computed - holder.offset, len(holder.ids) - holder.offset)
    for layer in range(2):
        data = (own + layer)[:, None, None].expand(-1, 1, 4)
        cache.store.write(layer, torch.full_like(positions, holder.slot), positions, data, -data)
    holder.computed = len(holder.ids)


def stored(cache: KeyValueCache, holder: Request | Parked) -> list[int]:
    keys, values = cache.store.layer(1)
    assert torch.equal(keys, -values)
    return (keys[holder.slot, 0, : holder.own_tokens, 3] - 1).int().tolist()


def run(cache: KeyValueCache, ids: list[int], session: str | None = None) -> Request:
    new = request(ids, session)
    if not cache.adopt(new):
        assert cache.take(new, len(ids))
    assert cache.reserve(new.own_tokens + new.pending)
    write(cache, new)
    return new


def test_sessions_hand_their_slot_on() -> None:
    cache = make_cache()
    cache.park(run(cache, [1, 2, 3, 4], "s"))
    longer = request([1, 2, 3, 4, 5, 6], "s")
    assert cache.adopt(longer)
    assert (longer.computed, stored(cache, longer)) == (4, [1, 2, 3, 4])
    assert not cache.parked
    cache.release(longer)
    assert not cache.adopt(request([1, 2], "s"))


@pytest.mark.parametrize(("ids", "reused"), [([1, 2, 9, 9], 2), ([1, 2, 3], 2), ([1, 2, 3, 4], 3), ([9, 9], 0)])
def test_a_session_that_changed_keeps_what_agrees_and_runs_the_last_token(ids: list[int], reused: int) -> None:
    cache = make_cache()
    cache.park(run(cache, [1, 2, 3, 4], "s"))
    other = request(ids, "s")
    assert cache.adopt(other) == (reused > 0)
    assert other.computed == reused


def test_growing_and_compacting_keep_contents() -> None:
    cache = make_cache(max_tokens=10**6)
    holders = [run(cache, [10 * i + j for j in range(3 + i)], f"s{i}") for i in range(9)]
    for holder in holders[::2]:
        cache.park(holder)
    survivors = holders[1::2]
    survivors.append(run(cache, list(range(100)), "long"))
    cache.compact(survivors)
    assert sorted(holder.slot for holder in survivors) == list(range(5))
    assert all(stored(cache, holder) == holder.ids for holder in survivors)
    for i, parked in enumerate(cache.parked.values()):
        assert stored(cache, parked) == holders[2 * i].ids


def test_the_least_recently_used_sessions_make_room() -> None:
    cache = make_cache(max_tokens=6 * 32)
    for i in range(6):
        cache.park(run(cache, [i, i], f"s{i}"))
    cache.park(run(cache, [0, 0, 1], "s0"))
    running = [run(cache, [7, 7]), run(cache, [8, 8])]
    assert list(cache.parked) == ["s3", "s4", "s5", "s0"]
    more = [run(cache, [9]) for _ in range(4)]
    assert not cache.parked
    assert not cache.take(request([9]), 1)
    assert not cache.reserve(33)
    for holder in running + more:
        assert stored(cache, holder) == holder.ids


def test_sessions_take_free_memory_only_up_to_the_slots_that_may_run() -> None:
    cache = make_cache(max_tokens=10**6, max_slots=8)
    for i in range(12):
        cache.park(run(cache, [i, i], f"s{i}"))
    assert list(cache.parked) == [f"s{i}" for i in range(4, 12)]


def test_prefixes_are_evicted_once_nobody_refers_to_them() -> None:
    cache = make_cache(max_tokens=32 * 8)
    used, idle = Prefix(ids=tuple(range(40))), Prefix(ids=tuple(range(50)))
    for prefix in (used, idle):
        cache.add_prefix(prefix)
    holder = request([*range(40), 7])
    cache.join_prefix(holder, used)
    holder.computed = 40
    assert cache.take(holder, 1)
    while cache.take(request([1]), 1):
        pass
    assert list(cache.prefixes.values()) == [used]
    assert cache.find_prefix(idle.ids) is None
    cache.release(holder)
    assert used.users == 0
    assert cache.take(request([1]), 1)


def test_forgetting_drops_sessions_and_hides_prefixes() -> None:
    cache = make_cache()
    prefix = Prefix(ids=(1, 2))
    cache.add_prefix(prefix)
    holder = request([1, 2, 3], "s")
    cache.join_prefix(holder, prefix)
    assert cache.take(holder, 1)
    cache.park(run(cache, [4, 5], "t"))
    cache.forget()
    assert (cache.find_prefix((1, 2)), holder.prefix, dict(cache.parked)) == (None, prefix, {})


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["run", "park", "release", "grow"]), st.integers(0, 9)), max_size=60))
def test_slots_stay_consistent_and_within_the_bound(steps: list[tuple[str, int]]) -> None:
    cache, running = make_cache(max_tokens=10 * 64), list[Request]()
    for name, number in steps:
        step(cache, running, name, number)
        assert cache.store.slots * cache.store.capacity <= cache.max_tokens
        assert len(cache.owners) == cache.store.slots
        for slot, owner in enumerate(cache.owners):
            assert owner is None or owner.slot == slot
        assert {id(owner) for owner in cache.owners if isinstance(owner, Request)} == {id(r) for r in running}
        assert {id(owner) for owner in cache.owners if isinstance(owner, Parked)} == set(map(id, cache.parked.values()))
        assert all(stored(cache, holder) == holder.ids for holder in [*running, *cache.parked.values()])


def step(cache: KeyValueCache, running: list[Request], name: str, number: int) -> Any:
    if name == "run":
        new = request([number] * (1 + 3 * number), f"s{number % 5}")
        if cache.adopt(new) or cache.take(new, len(new.ids)):
            running.append(new)
            write(cache, new)
    elif name == "grow" and running:
        holder = running[number % len(running)]
        if cache.reserve(holder.own_tokens + 20):
            holder.ids.extend([number] * 20)
            write(cache, holder)
    elif running:
        holder = running.pop(number % len(running))
        cache.park(holder) if name == "park" else cache.release(holder)
