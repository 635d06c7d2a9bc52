from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icrl.runtime.dialects.foreign import shown
from icrl.runtime.dialects.segments import observation, separator, told
from icrl.testing import ByteTokenizer
from icrl.tiny import BASE_DIR
from icrl.tokenizer import ChatTokenizer, Rendered, Special
from icrl.types import ToolResult

TINY = ChatTokenizer.load(BASE_DIR)
TAGS = ("information", "answer")
PIECES = ["word ", "</information>", "<answer>", "\x00", "é", "\n", " ", "search", "<", "1234", "&lt;"]
texts = st.lists(st.sampled_from(PIECES) | st.text(st.characters(exclude_categories=["Cs"]), max_size=4), max_size=30)


def wrap(text: str) -> Rendered:
    return Rendered() + f"\n<information> {text} </information>\n"


@pytest.mark.parametrize("tokenizer", [TINY, ByteTokenizer()], ids=["tiny", "bytes"])
@given(pieces=texts, limit=st.integers(1, 120))
def test_a_result_is_told_as_it_is_shown_and_then_wrapped(tokenizer, pieces, limit):
    result = ToolResult(call_id="0.0", name="search", text="".join(pieces))
    cut = shown(tokenizer, result, tags=TAGS, max_tokens=limit)
    expected = observation(tokenizer, wrap(cut.text), cut, 3)
    assert told(tokenizer, result, 3, wrap=wrap, tags=TAGS, max_tokens=limit) == expected


@pytest.mark.parametrize(("size", "encoded"), [(10, 1), (90, 1), (5000, 0)])
def test_what_fits_is_encoded_once_and_what_never_does_is_not_tried(size, encoded):
    class Counting(ByteTokenizer):
        def encode(self, text):
            whole.append(text == wrap("y" * size))
            return super().encode(text)

    whole: list[bool] = []
    result = ToolResult(call_id="0.0", name="search", text="y" * size)
    segment = told(Counting(), result, 0, wrap=wrap, tags=TAGS, max_tokens=200)
    assert sum(whole) == encoded
    assert len(whole) == 1 or segment.result.truncated


def test_separators_are_encoded_once_for_all_runs():
    part = Rendered((Special(2, "<|im_end|>"),)) + "\n"
    assert separator(TINY, part, 1) is separator(TINY, part, 1)
    assert separator(TINY, part, 1)[0].turn == 1
    assert separator(TINY, part, 2)[0].turn == 2
    assert separator(TINY, Rendered(), 1) == ()
