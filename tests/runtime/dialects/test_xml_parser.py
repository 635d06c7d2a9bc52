from __future__ import annotations

from itertools import groupby, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icrl.errors import ConfigError
from icrl.runtime.dialects.xml_parser import XmlParser, grammar

GRAMMAR = grammar(("search", "python"))
TAGS = [f"<{slash}{name}>" for name in ("think", "answer", "search", "python") for slash in ("", "/")]
FRAGMENTS = [*TAGS, "<", "</", "<sea", "rch>", ">", " a ", "b\n", "<information>", "<b>", "</think", "🙂"]
turns = st.lists(st.sampled_from(FRAGMENTS), max_size=12).map("".join)


def parse(chunks):
    parser = XmlParser(GRAMMAR)
    pieces = [piece for chunk in chunks for piece in parser.feed(chunk)] + parser.close()
    joined = [
        (key[0], key[2], "".join(piece.text for piece in run))
        for key, run in groupby(pieces, key=lambda p: (p.kind, p.block, p.name))
    ]
    return parser, joined


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("", []),
        ("just text", [("text", "", "just text")]),
        ("<think> a </think>\n<search> b </search>", [
            ("thought", "", " a "), ("text", "", "\n"), ("call", "search", " b "),
        ]),
        ("<answer> 5 </answer>", [("answer", "", " 5 ")]),
        ("a < b <i> c", [("text", "", "a < b <i> c")]),
        ("<think> open", [("thought", "", " open")]),
        # the nearest opening tag of the same name counts
        ("<search> a <search> b </search>", [("call", "search", " a "), ("call", "search", " b ")]),
        ("<think> a <think> b </think> c", [("thought", "", " a <think> b "), ("text", "", " c")]),
        # inside a thought, tags are thought unless one of them is closed
        ("<think> use <search> then </think> <answer> 5 </answer>", [
            ("thought", "", " use <search> then "), ("text", "", " "), ("answer", "", " 5 "),
        ]),
        ("<think> a <search> b </search>", [("thought", "", " a "), ("call", "search", " b ")]),
        ("<think> a <python> b <search> c </search>", [
            ("thought", "", " a <python> b "), ("call", "search", " c "),
        ]),
        # a body may mention other tags
        ("<python> print('<answer>') </python>", [("call", "python", " print('<answer>') ")]),
        ("<python> '<search>' '<think>' </python>", [("call", "python", " '<search>' '<think>' ")]),
        ("<search> a <answer> 5 </answer>", [("call", "search", " a "), ("answer", "", " 5 ")]),
        # closing tags that close nothing
        ("a </think> b </answer> c", [("text", "", "a </think> b </answer> c")]),
    ],
)  # fmt: skip
def test_labels(text, pieces):
    assert parse([text])[1] == pieces
    assert parse(text)[1] == pieces  # character by character


@given(text=turns, data=st.data())
def test_chunking_changes_nothing(text, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    bounds = [0, *cuts, len(text)]
    whole, pieces = parse([text])
    chunked, chunked_pieces = parse([text[a:b] for a, b in pairwise(bounds)])
    assert chunked_pieces == pieces
    assert (chunked.call, chunked.answer, chunked.thoughts) == (whole.call, whole.answer, whole.thoughts)


@given(text=turns)
def test_labels_agree_with_what_was_read(text):
    parser, pieces = parse([text])
    assert not parser.answer or parser.answer in [body for kind, _, body in pieces if kind == "answer"]
    call = parser.call
    if call is not None and call.error is None:
        body = f"<{call.name}>{call.body}</{call.name}>"
        assert text[call.start : call.end] == body
        calls = [(name, body) for kind, name, body in pieces if kind == "call"]
        assert not call.body or calls[-1] == (call.name, call.body)
        assert f"</{call.name}>" not in call.body
        assert f"<{call.name}>" not in call.body
    elif call is not None:
        assert text[call.start :].startswith(("<search>", "</search>", "<python>", "</python>"))


@given(text=turns)
def test_nothing_but_tags_is_lost(text):
    _, pieces = parse([text])
    assert "".join(GRAMMAR.tag.sub("", body) for _, _, body in pieces) == GRAMMAR.tag.sub("", text)


def test_the_first_closing_tag_decides():
    parser, pieces = parse(["<search> a </search> <search> b </search> <answer> c </answer>"])
    assert parser.call.body == " a "
    assert parser.answer is None
    assert pieces[-1] == ("text", "", " <search> b </search> <answer> c </answer>")
    parser, _ = parse(["<answer> a </answer> <search> b </search>"])
    assert (parser.call, parser.answer) == (None, " a ")


def test_the_last_answer_counts():
    parser, _ = parse(["<answer> a </answer> or <answer> b </answer>"])
    assert parser.answer == " b "


@pytest.mark.parametrize(
    ("text", "name", "error", "span"),
    [
        ("so <search> x", "search", "<search> was never closed", (3, 13)),
        ("x </search>", "search", "</search> closes a call that was never opened", (2, 11)),
        ("<think> x </python>", "python", "</python> closes a call that was never opened", (10, 19)),
        ("<search> a <sear", "search", "<search> was never closed", (0, 16)),
        ("<search> a </python>", "python", "</python> closes a call that was never opened", (11, 20)),
    ],
)
def test_malformed_calls(text, name, error, span):
    for chunks in ([text], text):
        call = parse(chunks)[0].call
        assert (call.name, call.error, (call.start, call.end)) == (name, error, span)


def test_an_unclosed_call_inside_an_unclosed_thought_is_thought():
    parser, pieces = parse(["<think> a <search> b"])
    assert parser.call is None
    assert parser.thoughts == [" a <search> b"]
    assert pieces == [("thought", "", " a <search> b")]


def test_tools_cannot_take_the_dialects_own_tags():
    with pytest.raises(ConfigError, match="'information' is a tag of the xml dialect"):
        grammar(("search", "information"))
