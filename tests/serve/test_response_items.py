"""The order of the events in a response's life, whatever is heard."""

from __future__ import annotations

import re
from collections import defaultdict

from hypothesis import given
from hypothesis import strategies as st

from icrl.events import TurnFinished
from icrl.serve.narration import Heard
from icrl.serve.responses_items import ItemWriter
from icrl.trajectory import Segment, Turn
from icrl.types import ToolCall, ToolResult

TEXT_LIFE = (
    r"output_item\.added content_part\.added (?:{kind}\.delta )+{kind}\.done content_part\.done output_item\.done "
)
CALL_LIFE = (
    r"output_item\.added mcp_call\.in_progress mcp_call_arguments\.done "
    r"(?:(?:mcp_call\.completed |mcp_call\.failed )?output_item\.done )"
)
LIVES = {
    "reasoning": re.compile(TEXT_LIFE.format(kind="reasoning_text")),
    "message": re.compile(TEXT_LIFE.format(kind="output_text")),
    "mcp_call": re.compile(CALL_LIFE),
}


def turn_over(reason):
    segment = Segment(source="policy", role="text", ids=(), logprobs=())
    turn = Turn(index=0, finish_reason=reason, prompt_tokens=0, sampled_tokens=0, cached_tokens=0, generate_s=0.0)
    return Heard("turn", event=TurnFinished(turn=turn, segment=segment))


@st.composite
def runs(draw):
    """A run as narrated: turns of text, then calls that are answered in any order, or never."""
    heard: list[Heard] = []
    for turn in range(draw(st.integers(1, 3))):
        texts = st.tuples(st.sampled_from(["thought", "said"]), st.text(min_size=1, max_size=3))
        heard += [Heard(kind, text, turn) for kind, text in draw(st.lists(texts, max_size=5))]
        heard.append(turn_over(draw(st.sampled_from(["stop", "eos", "length", "abort"]))))
        calls = [ToolCall(name="echo", arguments={"n": i}, id=f"{turn}.{i}") for i in range(draw(st.integers(0, 3)))]
        heard += [Heard("call", call=call) for call in calls]
        answered = draw(st.lists(st.sampled_from(calls), unique_by=id)) if calls else []
        heard += [Heard("result", call=call, result=result(call, draw(st.booleans()))) for call in answered]
    return heard


def result(call, failed):
    return ToolResult(call_id=call.id, name=call.name, text="told", error="ToolError" if failed else None, wall_s=0.5)


@given(heard=runs())
def test_every_item_lives_in_order_and_ends_complete(heard):
    writer = ItemWriter("1")
    events = [event for h in heard for event in writer.feed(h)] + list(writer.abandon())
    lives: defaultdict[int, str] = defaultdict(str)
    for event in events:
        index = event["output_index"]
        lives[index] += event["type"].removeprefix("response.") + " "
        assert event.get("item_id", writer.items[index]["id"]) == writer.items[index]["id"]
    assert sorted(lives) == list(range(len(writer.items)))
    for index, item in enumerate(writer.items):
        assert LIVES[item["type"]].fullmatch(lives[index]), lives[index]
        assert item["status"] in ("completed", "incomplete", "failed")
    assert [e["output_index"] for e in events if e["type"].endswith("item.added")] == sorted(lives)
    done = {e["output_index"]: e["item"] for e in events if e["type"].endswith("item.done")}
    assert [done[index] for index in sorted(done)] == writer.items


@given(heard=runs())
def test_deltas_join_to_what_was_heard(heard):
    writer = ItemWriter("1")
    events = [event for h in heard for event in writer.feed(h)] + list(writer.abandon())
    for kind, name in (("thought", "reasoning_text"), ("said", "output_text")):
        everything = "".join(h.text for h in heard if h.kind == kind)
        assert "".join(e["delta"] for e in events if e["type"] == f"response.{name}.delta") == everything
        assert "".join(e["text"] for e in events if e["type"] == f"response.{name}.done") == everything
        parts = [p for item in writer.items for p in item.get("content", ()) if p["type"] == name]
        assert "".join(part["text"] for part in parts) == everything


def test_calls_keep_their_outcome():
    writer = ItemWriter("1")
    good, bad, lost = (ToolCall(name="echo", arguments={"text": "é"}, id=str(i)) for i in range(3))
    for heard in (Heard("call", call=call) for call in (good, bad, lost)):
        list(writer.feed(heard))
    list(writer.feed(Heard("result", call=bad, result=result(bad, True))))
    list(writer.feed(Heard("result", call=good, result=result(good, False))))
    list(writer.abandon())
    states = [(item["status"], item["output"], item["error"] and item["error"]["content"]) for item in writer.items]
    assert states == [("completed", "told", None), ("failed", None, "told"), ("incomplete", None, None)]
    assert writer.items[0]["arguments"] == '{"text":"é"}'
    assert writer.items[0]["icrl"] == {"wall_s": 0.5}


def test_words_that_were_cut_off_are_incomplete():
    for reason, status in (("length", "incomplete"), ("abort", "incomplete"), ("eos", "completed")):
        writer = ItemWriter("1")
        for heard in (Heard("said", "hal"), turn_over(reason)):
            list(writer.feed(heard))
        assert writer.items[0]["status"] == status
