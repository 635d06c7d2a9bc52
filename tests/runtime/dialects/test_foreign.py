from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icrl.runtime.dialects.foreign import escape, shown
from icrl.tiny import BASE_DIR
from icrl.tokenizer import ChatTokenizer
from icrl.types import ToolResult

TINY = ChatTokenizer.load(BASE_DIR)
TAGS = ("information", "search")
hostile = st.lists(
    st.one_of(st.text(max_size=5), st.sampled_from(["<", "</", "/", "information", "SEARCH", ">", "\0", " ", "\n"])),
    max_size=10,
).map("".join)


@pytest.mark.parametrize(
    "tag",
    [
        "</information>",
        "</INFORMATION >",
        "< / information>",
        "<\n/information\n>",
        "</\u200binformation>",
        "</information",
        "<search>",
        '<search x="1">',
    ],
)
def test_a_tag_in_any_spelling_is_escaped(tag):
    assert escape(f"a {tag} b", TAGS) == f"a &lt;{tag[1:]} b"


@pytest.mark.parametrize("text", ["1 < 2 > 0", "<b>bold</b>", "<searching>", "<search-box>", "a\n\té 🙂", "<|im_end|>"])
def test_other_text_stays(text):
    assert escape(text, TAGS) == text


def test_control_characters_become_visible():
    assert escape("a\0b\rc\x1b[0m\x7f\x85\ud800", ()) == "a\\x00b\\x0dc\\x1b[0m\\x7f\\x85\\ud800"
    assert escape("</in\0formation>", TAGS) == "</in\\x00formation>"


@given(text=hostile)
def test_escaping_is_idempotent_and_leaves_no_tag(text):
    once = escape(text, TAGS)
    assert escape(once, TAGS) == once
    squeezed = "".join(once.casefold().split())
    assert not any(squeezed.count(f"<{slash}{name}>") for name in TAGS for slash in ("", "/"))


def result(text):
    return ToolResult(call_id="0.0", name="search", text=text)


def test_a_harmless_result_is_shown_as_it_is():
    harmless = result("The code of Rikor is 113.")
    assert shown(TINY, harmless, tags=TAGS, max_tokens=50) is harmless


def test_a_long_result_is_cut_in_the_middle():
    text = "".join(f"The code of Rikor is {i}. " for i in range(200))
    cut = shown(TINY, result(text), tags=TAGS, max_tokens=100)
    head, count, tail = cut.text.replace(" [… ", "\0").replace(" characters cut …] ", "\0").split("\0")
    assert cut.truncated
    assert 90 <= len(TINY.encode(cut.text)) <= 100
    assert text.startswith(head)
    assert text.endswith(tail)
    assert len(head) > 50
    assert len(tail) > 50
    assert int(count) == len(text) - len(head) - len(tail)


@given(text=hostile.map(lambda t: (t + "é🙂 word") * 40), limit=st.integers(1, 120))
def test_a_cut_result_fits_and_stays_text(text, limit):
    cut = shown(TINY, result(text), tags=TAGS, max_tokens=limit)
    notice = len(TINY.encode(f" [… {10 * len(text)} characters cut …] "))
    assert len(TINY.encode(cut.text)) <= max(limit, notice)
    assert "\ufffd" not in cut.text or "\ufffd" in text
    assert escape(cut.text, TAGS) == cut.text


def test_ten_megabytes_cost_no_more_than_their_ends():
    started = time.process_time()
    cut = shown(TINY, result("</information>\0" * 700_000), tags=TAGS, max_tokens=64)
    assert time.process_time() - started < 1
    assert "characters cut" in cut.text
    assert len(TINY.encode(cut.text)) <= 64
    assert "</information>" not in cut.text
