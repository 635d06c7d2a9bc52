from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icrl.errors import DataError
from icrl.runtime.dialects.hermes_template import frame_of
from icrl.runtime.engines.openai_chat import StopText, messages_of
from icrl.runtime.engines.text_tokenizer import END, ROLES, TextTokenizer, token_bytes
from icrl.tokenizer import TextStream
from icrl.types import Message, ToolCall

TOKENIZER = TextTokenizer()
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40) | st.sampled_from(
    ["<|end|>", "<|user|>", "\0", "\0\0\0", "<|assi", "stant|>", "\ue000"]
)
TURNS = st.lists(st.tuples(st.sampled_from(["user", "assistant"]), TEXT), min_size=1, max_size=5)


@given(TEXT)
def test_text_comes_back_and_spells_no_mark(text):
    ids = TOKENIZER.encode(text)
    assert TOKENIZER.decode(ids) == text
    assert all(256 <= i < TOKENIZER.vocab_size for i in ids)
    assert TOKENIZER.encode_batch([text]) == [ids]


@given(TEXT, TEXT, TURNS)
def test_a_conversation_is_cut_back_into_its_messages(system, last, turns):
    messages = [Message(role="system", content=system)] * bool(system)
    messages += [Message(role=role, content=text) for role, text in turns]
    messages.append(Message(role="user", content=last))
    (rendered,) = TOKENIZER.render(messages)
    expected = [{"role": m.role, "content": m.content} for m in messages]
    assert messages_of(TOKENIZER.encode(rendered), engine="e") == expected


@given(TEXT.filter(bool), st.data())
def test_tokens_of_a_range_are_found(text, data):
    start = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(start + 1, len(text)))
    ids = TOKENIZER.encode(text)
    first, last = TOKENIZER.locate(ids, start, end)
    covered = b"".join(map(token_bytes, ids[first:last]))
    assert text[start:end].encode() in covered
    assert len(covered) <= len(text[start:end].encode()) + 4


@given(TEXT)
def test_it_streams(text):
    stream = TextStream(TOKENIZER)
    assert "".join([stream.feed([i]) for i in TOKENIZER.encode(text)] + [stream.close()]) == text


def test_calls_and_results_are_written_as_hermes_wants_them():
    frame = frame_of(TOKENIZER, 2)
    assert frame.end.id == END
    call = ToolCall(name="echo", arguments={"text": "<|end|>"}, id="0")
    chat = [
        Message(role="user", content="?"),
        Message(role="assistant", content="So:", tool_calls=(call, call)),
        Message(role="tool", content="one"),
        Message(role="tool", content="two"),
    ]
    (rendered,) = TOKENIZER.render(chat)
    user, said, told = messages_of(TOKENIZER.encode(rendered), engine="e")
    assert user["content"] == "?"
    assert said["content"].count('<tool_call>\n{"name": "echo", "arguments": {"text": "<|end|>"}}') == 2
    assert told == {
        "role": "user",
        "content": "<tool_response>\none\n</tool_response>\n<tool_response>\ntwo\n</tool_response>",
    }


def test_marks_are_left_out_of_text():
    assert TOKENIZER.decode([2, *TOKENIZER.encode("Hi"), END, 3]) == "Hi"
    assert set(ROLES.values()) == {"system", "user", "assistant"}


def test_half_a_surrogate_pair_is_refused():
    with pytest.raises(DataError, match="character 1 is half"):
        TOKENIZER.encode("a\ud800")


@given(st.text(alphabet="ab<>/", max_size=30), st.lists(st.integers(1, 4), min_size=1, max_size=9))
def test_a_stop_string_is_found_however_text_is_divided(text, sizes):
    strings = ("</a>", "b<b")
    ends = [at + len(s) for s in strings if (at := text.find(s)) >= 0]
    stop, kept, at = StopText(strings), "", 0
    while at < len(text):
        piece = text[at : at + sizes[at % len(sizes)]]
        cut = stop.cut(piece)
        kept += piece[:cut]
        at += len(piece)
        if cut is not None:
            break
    assert kept == text[: min(ends, default=len(text))]
