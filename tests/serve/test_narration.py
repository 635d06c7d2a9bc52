"""The narration's laws: however text is divided, and whatever it says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icrl.events import CallFinished, CallStarted, RunStopped, TextDelta, TurnFinished
from icrl.runtime.dialect import find_dialect
from icrl.serve.narration import Narrator
from icrl.testing import ByteTokenizer, EchoTool
from icrl.trajectory import Segment, StopReason, Turn
from icrl.types import ToolCall, ToolResult

TOKENIZER, TOOLS = ByteTokenizer(), (EchoTool().spec,)
WORDS = [" ", "\n", "a", "b c", "é", "<", "</", ">", '"', "\\", "<b>", "</ans"]
XML = st.lists(
    st.sampled_from([*WORDS, "<think>", "</think>", "<answer>", "</answer>", "<echo>", "</echo>"]), max_size=12
)
CALL = '<tool_call>{"name": "echo", "arguments": {"text": "<think>"}}</tool_call>'
HERMES = st.lists(
    st.sampled_from([*WORDS, "<think>", "</think>", "<tool_call>", "</tool_call>", CALL]), max_size=10
).map("".join)


def stopped(pieces: list[str]) -> str:
    """Join up to the first tag that ends a turn, as an engine does."""
    end = next((i for i, piece in enumerate(pieces) if piece in ("</answer>", "</echo>")), len(pieces))
    return "".join(pieces[: end + 1])


def finished(dialect, text, turn, reason):
    ids = tuple(TOKENIZER.encode(text))
    reply = dialect.parse(TOKENIZER, ids, tools=TOOLS, turn=turn)
    record = Turn(
        index=turn, finish_reason=reason, prompt_tokens=0, sampled_tokens=len(ids), cached_tokens=0, generate_s=0.0
    )
    segment = Segment(
        source="policy", role="text", ids=ids, text=text, turn=turn, logprobs=(0.0,) * len(ids), calls=reply.calls
    )
    return TurnFinished(turn=record, segment=segment), reply


def narrate(name, turns, cuts=lambda text: [text], reason="stop"):
    """Tell of some turns; return the narrator, what was heard, and the last reply."""
    dialect = find_dialect(name)
    narrator = Narrator(dialect, TOKENIZER, TOOLS)
    heard, reply = [], None
    for turn, text in enumerate(turns):
        for delta in cuts(text):
            heard += narrator.feed(TextDelta(turn=turn, text=delta))
        event, reply = finished(dialect, text, turn, reason)
        heard += narrator.feed(event)
    return narrator, heard, reply


def told(heard, kind):
    return "".join(h.text for h in heard if h.kind == kind)


def letters(text: str) -> str:
    return "".join(text.split())


def pieces_of(name, text):
    parser = find_dialect(name).parser(TOKENIZER, tools=TOOLS)
    return [*parser.feed(text), *parser.close()]


@given(
    turns=st.lists(XML.map(stopped), min_size=1, max_size=3) | st.lists(HERMES, min_size=1, max_size=3), data=st.data()
)
@pytest.mark.parametrize("name", ["xml", "hermes"])
def test_how_text_is_divided_changes_nothing(name, turns, data):
    def cuts(text):
        places = sorted(data.draw(st.sets(st.integers(0, len(text)))))
        return [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]

    (one, whole, _), (other, divided, _) = narrate(name, turns), narrate(name, turns, cuts)
    assert one.spans == other.spans
    for kind in ("said", "thought"):
        assert told(divided, kind) == told(whole, kind)


@given(pieces=XML)
def test_the_words_are_the_answer(pieces):
    text = stopped(pieces)
    _, heard, reply = narrate("xml", [text])
    words = told(heard, "said")
    if reply.answer is not None and text.count("<answer>") == 1:
        assert words == reply.answer
    elif reply.answer:  # an earlier opening tag had been told as the beginning of an answer
        assert words == reply.answer or words.endswith("\n\n" + reply.answer)
    elif "<answer>" not in text:
        outside = "".join(piece.text for piece in pieces_of("xml", text) if piece.kind == "text")
        assert words == ("" if reply.calls else outside.strip())


@given(pieces=XML)
def test_thoughts_are_what_was_thought(pieces):
    text = stopped(pieces)
    _, heard, _ = narrate("xml", [text])
    parsed = pieces_of("xml", text)
    if any(piece.kind == "text" and piece.text.strip() for piece in parsed):
        return
    blocks: dict[int, str] = {}
    for piece in parsed:
        if piece.kind == "thought":
            blocks[piece.block] = blocks.get(piece.block, "") + piece.text
    assert told(heard, "thought") == "\n".join(filter(None, (block.strip() for block in blocks.values())))


@given(text=HERMES)
def test_hermes_says_its_text(text):
    _, heard, reply = narrate("hermes", [text], reason="eos")
    spoken = "".join(piece.text for piece in pieces_of("hermes", text) if piece.kind == "text").strip()
    assert told(heard, "said") == spoken
    assert reply.answer in (None, spoken)
    assert letters(told(heard, "thought")) == letters(reply.thought)


@given(pieces=XML, text=HERMES)
def test_spans_are_where_it_was_told(pieces, text):
    for name, turn in (("xml", stopped(pieces)), ("hermes", text)):
        narrator, heard, _ = narrate(name, [turn])
        for label in ("said", "thought"):
            placed = "".join(turn[span.start : span.end] for span in narrator.spans[0] if span.label == label)
            # Text outside of all marks is told late, so the order may differ.
            assert sorted(letters(placed)) == sorted(letters(told(heard, label)))


@given(pieces=XML)
def test_an_engine_without_deltas_is_narrated_too(pieces):
    text = stopped(pieces)
    (one, whole, _), (other, late, _) = narrate("xml", [text]), narrate("xml", [text], cuts=lambda _: [])
    assert one.spans == other.spans
    assert all(told(late, kind) == told(whole, kind) for kind in ("said", "thought"))


def test_text_before_an_answer_is_reasoning_and_comes_before_it():
    _, heard, _ = narrate("xml", ["Let me see. <think> hm </think> <answer> 1 </answer>"])
    assert [(h.kind, h.text) for h in heard[:-1]] == [("thought", "hm"), ("thought", "\nLet me see."), ("said", "1")]


def test_what_follows_the_closing_tag_is_the_rest_of_a_token():
    _, heard, _ = narrate("xml", ["<answer> 1 </answer>."])
    assert [(h.kind, h.text) for h in heard] == [("said", "1"), ("turn", "")]
    _, heard, _ = narrate("xml", ["<answer> 1 </answer> So it is."], reason="eos")
    assert told(heard, "thought") == "So it is."


def test_plain_text_is_the_answer_of_a_turn_without_marks():
    narrator, heard, _ = narrate("xml", ["It is <think> hm </think> 113. "], reason="eos")
    assert (told(heard, "said"), told(heard, "thought")) == ("It is  113.", "hm")
    assert [span.label for span in narrator.spans[0]] == ["said", "thought", "said"]


def test_turns_stand_apart():
    _, heard, _ = narrate("hermes", [f"First. {CALL}", "<think>\nhm\n</think>\n\n Second. "], reason="eos")
    assert told(heard, "said") == "First.\n\nSecond."
    _, heard, _ = narrate("xml", ["<think> a </think><echo> x </echo>", "<think> b </think><answer> c </answer>"])
    assert told(heard, "thought") == "a\nb"


def test_calls_and_ends_are_told_with_their_turn():
    narrator, _, _ = narrate("xml", ["<answer> a </answer>", "<answer> b </answer>"])
    call, result = ToolCall(name="echo", id="1.0"), ToolResult(call_id="1.0", name="echo", text="x")
    stop = RunStopped(stop_reason=StopReason.ANSWER, answer="b", wall_s=0.0)
    heard = [*narrator.feed(CallStarted(call=call)), *narrator.feed(CallFinished(call=call, result=result))]
    heard += narrator.feed(stop)
    assert [(h.kind, h.turn) for h in heard] == [("call", 1), ("result", 1), ("stopped", 1)]
    assert (heard[0].call, heard[1].result, heard[2].event) == (call, result, stop)
