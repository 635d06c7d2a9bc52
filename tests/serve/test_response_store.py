from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icrl.serve.problem import Problem
from icrl.serve.store import ResponseStore, Stored
from icrl.testing import ByteTokenizer
from icrl.types import Message, ToolCall
from icrl.wire import encode

TOKENIZER = ByteTokenizer()
TALK = (
    Message(role="user", content="é"),
    Message(role="assistant", content="", tool_calls=(ToolCall(name="echo", arguments={"text": "x"}, id="1"),)),
    Message(role="tool", content="x", tool_call_id="1"),
)


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def entry(owner="me", size=0):
    return Stored(
        owner=owner,
        response=b"x" * size,
        input_items=b"",
        conversation=encode(TALK),
        trajectory=b"",
        tokenizer=TOKENIZER,
    )


OWN = entry().size


def store(max_entries=10, max_bytes=1_000_000, ttl_s=60.0, clock=None):
    return ResponseStore(max_entries=max_entries, max_bytes=max_bytes, ttl_s=ttl_s, clock=clock or Clock())


def names(kept: ResponseStore) -> list[str]:
    found = []
    for number in range(6):
        with suppress(Problem):
            kept.get(str(number), owner="me")
            found.append(str(number))
    return found


def test_it_gives_back_what_it_was_given():
    kept, given = store(), entry()
    kept.put("a", given)
    assert kept.get("a", owner="me") == given
    assert given.messages == TALK


def test_the_oldest_goes_first():
    kept = store(max_entries=2)
    for name in "123":
        kept.put(name, entry())
    assert names(kept) == ["2", "3"]
    assert len(kept) == 2


def test_nothing_is_kept_where_nothing_may_be():
    for kept in (store(max_entries=0), store(max_bytes=10)):
        kept.put("1", entry())
        assert (len(kept), kept.size) == (0, 0)


def test_what_is_too_old_is_gone():
    clock = Clock()
    kept = store(clock=clock)
    kept.put("1", entry())
    clock.now = 30.0
    kept.put("2", entry())
    clock.now = 60.0
    assert names(kept) == ["2"]
    clock.now = 90.0
    assert (len(kept), kept.size) == (0, 0)


def test_only_its_owner_finds_a_response():
    kept = store()
    kept.put("a", entry("me"))
    refusals = []
    for ask in (kept.get, kept.delete):
        for name in ("a", "b"):
            with pytest.raises(Problem, match="there is no response") as raised:
                ask(name, owner="you")
            assert (raised.value.status, raised.value.code) == (404, "response_not_found")
            refusals.append((raised.value.status, raised.value.message.replace("'b'", "'a'")))
    assert len(set(refusals)) == 1, "somebody else's response looks like none"
    kept.delete("a", owner="me")
    assert len(kept) == 0


@given(
    steps=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 300), st.integers(0, 20), st.booleans()), max_size=30)
)
def test_it_stays_within_its_bounds(steps):
    clock = Clock()
    kept = store(max_entries=3, max_bytes=3 * OWN + 500, ttl_s=50.0, clock=clock)
    put: dict[str, float] = {}
    for name, size, passed, deletes in steps:
        clock.now += passed
        if deletes and str(name) in names(kept):
            kept.delete(str(name), owner="me")
        elif not deletes:
            kept.put(str(name), entry(size=size))
            put[str(name)] = clock.now
        assert len(kept) <= 3
        assert kept.size == sum(kept.get(n, owner="me").size for n in names(kept)) <= 3 * OWN + 500
        assert all(clock.now < put[n] + 50.0 for n in names(kept))
