from __future__ import annotations

import time
from itertools import groupby, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icrl.runtime.dialects.fence_parser import FenceParser

MARKS = ["```python\n", "\n```\n", "```text\n", "<code>", "</code>", "<think>", "</think>", "<answer>", "</answer>"]
FRAGMENTS = [*MARKS, "```", "``", "`", "````", "\n", "  ", "    ", "\\boxed{", "\\", "{", "}", "py", " a ", "<", "</co"]
turns = st.lists(st.sampled_from([*FRAGMENTS, "🙂", "\r\n"]), max_size=12).map("".join)


def parse(chunks, tool="python"):
    parser = FenceParser(tool)
    pieces = [piece for chunk in chunks for piece in parser.feed(chunk)] + parser.close()
    joined = [
        (key[0], "".join(piece.text for piece in run)) for key, run in groupby(pieces, key=lambda p: (p.kind, p.block))
    ]
    assert all((piece.name == tool) is (piece.kind == "call") for piece in pieces)
    return parser, joined


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("", []),
        ("just text", [("text", "just text")]),
        ("I try.\n```python\nx\n```\n", [("text", "I try.\n"), ("call", "\nx")]),
        ("```py\nx\n```", [("call", "\nx")]),
        ("```Python3 title=a\nx\n```", [("call", "\nx")]),
        ("```python\n```\n", []),
        ("  ```python\n  x\n  ```  \n", [("call", "\n  x")]),
        ("a\n```python\nx\n```\nb <answer>c</answer>", [
            ("text", "a\n"), ("call", "\nx"), ("text", "b <answer>c</answer>"),
        ]),
        ("```python\nx = '''\n    ```\n```z\n'''\n```\n", [("call", "\nx = '''\n    ```\n```z\n'''")]),
        ("```python", []),
        ("```python\nx", [("call", "\nx")]),
        # not a program
        ("```text\nx\n```\ny", [("text", "```text\nx\n```\ny")]),
        ("```\nx\n```\n", [("text", "```\nx\n```\n")]),
        ("```pycon\n```python\n```\n", [("text", "```pycon\n```python\n```\n")]),
        ("````python\nx\n````\n", [("text", "````python\nx\n````\n")]),
        ("    ```python\nx", [("text", "    ```python\nx")]),
        ("as in ```python\nx", [("text", "as in ```python\nx")]),
        ("```python print(`x`)\ny", [("text", "```python print(`x`)\ny")]),
        ("use `<code>` and ``\\boxed{`}``", [("text", "use `<code>` and ``\\boxed{`}``")]),
        ("a ` b\n<code>x</code>", [("text", "a ` b\n"), ("call", "x")]),
        # in a tag
        ("<code> x </code> b", [("call", " x "), ("text", " b")]),
        ("<code>\n```python\nx\n```\n</code> b", [("call", "\n```python\nx"), ("text", " b")]),
        ("<code>```py\nx\n```</code>", [("call", "```py\nx\n```")]),
        ("<code>\nx = '''\n```\n'''\n</code>", [("call", "\nx = '''\n```\n'''\n")]),
        # thoughts
        ("<think> \\boxed{1} <answer> </think> b", [("thought", " \\boxed{1} <answer> "), ("text", " b")]),
        ("<think> a\n```python\nx\n```\n</think>", [("thought", " a\n"), ("call", "\nx"), ("text", "</think>")]),
        ("a </think> b", [("text", "a </think> b")]),
        # answers
        ("so $\\boxed{\\frac{1}{2}}$.", [("text", "so $"), ("answer", "\\frac{1}{2}"), ("text", "$.")]),
        ("\\boxed{\\{1\\}\\\\}", [("answer", "\\{1\\}\\\\")]),
        ("\\boxed{1\n\n<answer> 2 </answer>", [("answer", "1"), ("text", "\n\n"), ("answer", " 2 ")]),
        ("\\boxed{1\n```python\nx\n```\n", [("answer", "1"), ("text", "\n"), ("call", "\nx")]),
        ("<answer> \\boxed{1} </answer>", [("answer", " \\boxed{1} ")]),
        ("<answer> a\n```python\n", [("answer", " a\n```python\n")]),
    ],
)  # fmt: skip
def test_labels(text, pieces):
    assert parse([text])[1] == pieces
    assert parse(text)[1] == pieces  # character by character


@given(text=turns, tool=st.sampled_from(["python", None]), data=st.data())
def test_chunking_changes_nothing(text, tool, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    whole, pieces = parse([text], tool)
    chunked, chunked_pieces = parse([text[a:b] for a, b in pairwise([0, *cuts, len(text)])], tool)
    assert chunked_pieces == pieces
    for name in ("program", "answer", "boxed", "open_code"):
        assert getattr(chunked, name) == getattr(whole, name)
    for name in ("thoughts", "prose", "rest"):
        assert "".join(getattr(chunked, name)) == "".join(getattr(whole, name))


@given(text=turns)
def test_nothing_but_marks_is_lost(text):
    _, pieces = parse([text])
    shown = iter(text)
    assert all(character in shown for _, body in pieces for character in body)  # a subsequence, in order
    lost = len(text) - sum(len(body) for _, body in pieces)
    marks = text.count("`") + text.count("\n") + text.count(" ") + text.count("\r") + text.count("}")
    tags = sum(len(mark) * text.count(mark) for mark in (*MARKS[3:], "\\boxed{"))
    assert lost <= marks + tags + len("python") * text.count("py")


@given(text=turns)
def test_a_program_is_what_it_says(text):
    program = parse([text])[0].program
    if program is not None:
        source = text[program.start : program.end]
        assert source.startswith(program.mark.lstrip(" ") + program.body)
        assert program.closed is (
            source.endswith(("```", "</code>")) and len(source) > len(program.mark + program.body)
        )


@given(text=turns)
def test_without_a_tool_there_are_no_programs(text):
    parser, pieces = parse([text], tool=None)
    assert parser.program is None
    assert "call" not in {kind for kind, _ in pieces}


def test_text_is_shown_as_it_comes():
    parser = FenceParser("python")
    assert [piece.text for piece in parser.feed("I try 2 < 3 and ")] == ["I try 2 < 3 and "]
    assert parser.feed("\n``") == [("text", "\n", 0, "")]
    assert parser.feed("`pyth") == []
    assert [piece.kind for piece in parser.feed("on\nx")] == ["call"]


@pytest.mark.parametrize("unit", ["`", "a", " ", "\n ", "\\boxed{", "\n```\n", "<code>", "<"])
@pytest.mark.parametrize("head", ["", "```", "<code>x", "\\boxed{", "```python\n"])
def test_long_turns_cost_no_more_than_their_length(head, unit):
    def seconds(size):
        text, started = head + unit * (size // len(unit)), time.thread_time()
        parse(text)
        return time.thread_time() - started

    # Ten times what is linear, a third of what is quadratic.
    bound = 320 * min(seconds(1_000) for _ in range(3)) + 0.2
    # Once may not be enough: a full collection of a long session's garbage takes half a second.
    assert any(seconds(32_000) < bound for _ in range(3))


def test_what_decides_comes_first():
    parser, _ = parse(["<answer> 1 </answer>\n```python\nx\n```\n<answer> 2 </answer>"])
    assert (parser.answer, parser.program) == (" 1 ", None)
    parser, _ = parse(["\\boxed{1}\n```python\nx\n```\n\\boxed{2}"])
    assert (parser.boxed, parser.program.body) == ("1", "\nx")
    parser, _ = parse(["\\boxed{1} or \\boxed{2}"])
    assert parser.boxed == "2"


def test_a_code_tag_that_the_fence_in_it_closed():
    for chunks in (["<code>\n```python\nx\n```\n"], "<code>\n```python\nx\n```\n"):
        parser, _ = parse(chunks)
        assert parser.open_code
        assert parser.program.closed
    parser, _ = parse(["<code>\n```python\nx\n```\n</code>"])
    assert not parser.open_code
    assert parser.program.end == len("<code>\n```python\nx\n```\n</code>")
