from __future__ import annotations

from itertools import groupby, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icrl.runtime.dialects.hermes_parser import CallBlock, HermesParser

FRAGMENTS = ["<think>", "</think>", "<tool_call>", "</tool_call>", '"', "\\", "\n", "{", "}", "<", "</tool", "_call>"]
turns = st.lists(st.sampled_from([*FRAGMENTS, " a", '"x": "y"', "🙂", "<tool_response>"]), max_size=14).map("".join)


def parse(chunks, *, thinking=False):
    parser = HermesParser(thinking)
    pieces = [piece for chunk in chunks for piece in parser.feed(chunk)] + parser.close()
    return parser, [
        (kind, "".join(piece.text for piece in run))
        for (kind, _), run in groupby(pieces, key=lambda p: (p.kind, p.block))
    ]


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("", []),
        ("It is 42.", [("text", "It is 42.")]),
        ("<think>\na\n</think>\n\nb", [("thought", "\na\n"), ("text", "\n\nb")]),
        ("a<tool_call>{}</tool_call>\n<tool_call>[]</tool_call>", [
            ("text", "a"), ("call", "{}"), ("text", "\n"), ("call", "[]"),
        ]),
        # tags inside strings and thoughts are not tags
        ('<tool_call>{"</tool_call>\\"<tool_call>"}</tool_call>', [("call", '{"</tool_call>\\"<tool_call>"}')]),
        ("<think>maybe <tool_call>{}</tool_call></think>x", [
            ("thought", "maybe <tool_call>{}</tool_call>"), ("text", "x"),
        ]),
        # a missing quote spoils its own line only
        ('<tool_call>{"a: 1}\n</tool_call>b', [("call", '{"a: 1}\n'), ("text", "b")]),
        ("<tool_call>{<tool_call>}</tool_call>", [("call", "{"), ("call", "}")]),
        ("a </tool_call> b </think>", [("text", "a </tool_call> b </think>")]),
    ],
)  # fmt: skip
def test_labels(text, pieces):
    assert parse([text])[1] == pieces
    assert parse(text)[1] == pieces  # character by character


def test_a_template_may_have_opened_the_thought():
    parser, pieces = parse(["hm</think>so"], thinking=True)
    assert pieces == [("thought", "hm"), ("text", "so")]
    assert (parser.thoughts, parser.spoken) == (["hm"], ["so"])


def test_calls_have_their_place_and_say_whether_they_end():
    text = "ab<tool_call>{<tool_call>}</tool_call><tool_call>x"
    calls = parse([text])[0].calls
    assert calls == [CallBlock("{", 2, 14, False), CallBlock("}", 14, 38, True), CallBlock("x", 38, 50, False)]
    assert "".join(text[c.start : c.end] for c in calls) == text[2:]


@given(text=turns, thinking=st.booleans(), data=st.data())
def test_chunking_changes_nothing(text, thinking, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    bounds = [0, *cuts, len(text)]
    whole, pieces = parse([text], thinking=thinking)
    chunks = [text[a:b] for a, b in pairwise(bounds)]
    chunked, chunked_pieces = parse(chunks, thinking=thinking)
    assert chunked_pieces == pieces
    assert chunked.calls == whole.calls
    assert "".join(chunked.spoken) == "".join(whole.spoken)
    assert "".join(chunked.thoughts) == "".join(whole.thoughts)


@given(text=turns)
def test_labels_agree_with_what_was_read(text):
    parser, pieces = parse([text])
    assert "".join(body for kind, body in pieces if kind == "text") == "".join(parser.spoken)
    assert [body for kind, body in pieces if kind == "call"] == [call.body for call in parser.calls if call.body]
    for call in parser.calls:
        assert text[call.start : call.end] == f"<tool_call>{call.body}" + "</tool_call>" * call.closed
