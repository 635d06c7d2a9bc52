from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from icrl.tiny import BASE_DIR
from icrl.tiny.tokenizer import END_OF_TEXT, END_OF_TURN, START_OF_TURN, build_tokenizer, learn_merges
from icrl.tiny.words import NAMES, units


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tokenizer")
    build_tokenizer(directory)
    return directory


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"])
def test_shipped_tokenizer_is_what_the_code_builds(built: Path, name: str):
    assert (built / name).read_bytes() == (BASE_DIR / name).read_bytes()


def test_every_unit_is_one_token(tokenizer: Tokenizer):
    assert [u for u in units() if len(tokenizer.encode(u)) != 1] == []


def test_every_name_is_two_tokens_with_and_without_a_space(tokenizer: Tokenizer):
    texts = [*NAMES, *(f" {n}" for n in NAMES)]
    assert [t for t, e in zip(texts, tokenizer.encode_batch(texts), strict=True) if len(e) != 2] == []


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("<search> code", ["<", "search", ">", "Ġcode"]),
        (" </tool_call>", ["Ġ</", "tool", "_", "call", ">"]),
        ("print(37 * 41)", ["print", "(", "3", "7", "Ġ*", "Ġ4", "1", ")"]),
        ("```python\nx=2", ["```", "python", "Ċ", "x", "=", "2"]),
        ("( 12 + 7 ) // 3", ["(", "Ġ1", "2", "Ġ+", "Ġ7", "Ġ)", "Ġ//", "Ġ3"]),
    ],
)
def test_marks_digits_and_words_stand_alone(tokenizer: Tokenizer, text: str, pieces: list[str]):
    assert tokenizer.encode(text).tokens == pieces


@given(st.text())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])  # the tokenizer has no state
def test_any_text_survives(tokenizer: Tokenizer, text: str):
    marked = any(t in text for t in (END_OF_TEXT, START_OF_TURN, END_OF_TURN))
    assert marked or tokenizer.decode(tokenizer.encode(text).ids) == text


def test_special_tokens_come_first(tokenizer: Tokenizer):
    assert [tokenizer.token_to_id(t) for t in (END_OF_TEXT, START_OF_TURN, END_OF_TURN)] == [0, 1, 2]


def test_transformers_reads_it_alike(tokenizer: Tokenizer):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(BASE_DIR)
    text = "Zürich <|im_start|>user\nWhat is the code of Rikor?<|im_end|>"
    assert theirs(text)["input_ids"] == tokenizer.encode(text).ids
    rendered = theirs.apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
    )
    assert rendered == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert json.loads((BASE_DIR / "tokenizer_config.json").read_text())["eos_token"] == END_OF_TURN


@given(st.lists(st.text("abc", min_size=1, max_size=6), max_size=12))
def test_learnt_merges_join_every_word(words: list[str]):
    merges = learn_merges(words)
    for word in words:
        pieces = list(word)
        for left, right in merges:
            i = 0
            while i + 1 < len(pieces):
                if (pieces[i], pieces[i + 1]) == (left, right):
                    pieces[i : i + 2] = [left + right]
                i += 1
        assert pieces == [word]


def test_given_merges_keep_their_precedence():
    assert learn_merges(["abc"], first=[("b", "c")]) == [("b", "c"), ("a", "bc")]
