"""Which results belong to which calls, in whatever way clients send them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icrl.serve.call_turns import Placed, paired
from icrl.serve.problem import Problem
from icrl.types import Message, ToolCall

USER = Message(role="user", content="Who?")


def asks(*names, content=""):
    calls = tuple(ToolCall(name="f", id=name) for name in names)
    return Message(role="assistant", content=content, tool_calls=calls)


def told(name):
    return Message(role="tool", content=f"about {name}", tool_call_id=name)


def pair(*messages, field="tool_call_id"):
    return paired([Placed(f"messages[{i}]", message) for i, message in enumerate(messages)], field=field)


@given(order=st.permutations(["a", "b", "c"]))
def test_results_stand_in_the_order_of_their_calls(order):
    chat = pair(USER, asks("a", "b", "c"), *map(told, order))
    assert chat == (USER, asks("a", "b", "c"), told("a"), told("b"), told("c"))


def test_a_turn_in_several_items_is_one():
    said = Message(role="assistant", content="I ask.")
    assert pair(USER, said, asks("a"), asks("b"), told("b"), told("a")) == (
        USER,
        asks("a", "b", content="I ask."),
        told("a"),
        told("b"),
    )
    assert pair(USER, said, said, asks("a"), told("a"))[1] == asks("a", content="I ask.\n\nI ask.")
    assert pair(USER, asks("a"), said, told("a"))[1] == asks("a", content="I ask.")


def test_turns_without_calls_stay_apart():
    said = [Message(role="assistant", content=text) for text in ("One.", "Two.")]
    assert pair(USER, *said, USER) == (USER, *said, USER)
    assert pair(USER, asks("a"), told("a"), asks("a"), told("a")) == (USER, asks("a"), told("a"), asks("a"), told("a"))


def test_system_text_may_stand_anywhere():
    system = Message(role="system", content="Be brief.")
    assert [m.role for m in pair(USER, asks("a"), system, told("a"))] == ["user", "assistant", "system", "tool"]


@pytest.mark.parametrize(
    ("chat", "param", "message"),
    [
        ([USER, told("a")], "messages[1].tool_call_id", "no call 'a' waits for a result. Those are: none"),
        ([USER, asks("ab"), told("aa")], "messages[2].tool_call_id", "Those are: 'ab'"),
        ([asks("a"), told("a"), told("a")], "messages[2].tool_call_id", "has a result already"),
        ([asks("a"), told("a"), USER, told("a")], "messages[3].tool_call_id", "no call 'a' waits"),
        ([USER, asks("a", "b"), told("a")], "messages[1]", "call 'b' of 'f' has no result"),
        ([USER, asks("a"), USER], "messages[1]", "call 'a' of 'f' has no result"),
        ([USER, asks("a", "b"), told("a"), asks("c")], "messages[1]", "call 'b' of 'f' has no result"),
        ([USER, asks("a", "a"), told("a")], "messages[1].tool_call_id", "two calls of one turn have the same id"),
    ],
)
def test_what_is_wrong_is_named(chat, param, message):
    with pytest.raises(Problem) as raised:
        pair(*chat)
    assert (raised.value.status, raised.value.param) == (400, param)
    assert message in raised.value.message


messages = st.sampled_from([USER, asks("a"), asks("a", "b"), asks(content="Hm."), told("a"), told("b")])


@given(chat=st.lists(messages, max_size=8))
def test_what_comes_through_is_in_order(chat):
    try:
        settled = pair(*chat)
    except Problem:
        return
    waiting: list[str] = []
    for message in settled:
        if message.role == "tool":
            assert message.tool_call_id == waiting.pop(0)
        else:
            assert not waiting
            waiting = [call.id for call in message.tool_calls]
    assert not waiting
    assert sorted(m.content for m in settled if m.role == "tool") == sorted(m.content for m in chat if m.role == "tool")
    assert pair(*settled) == settled
