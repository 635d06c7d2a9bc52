from __future__ import annotations

import argparse
import asyncio
import copy
import inspect
import json
import logging
import random
import shutil
import sys
import time
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from watched import until

from icrl import fast_encoder
from icrl import tokenizer as module
from icrl.byte_level import byte_alphabet, word_bytes
from icrl.errors import ConfigError, DataError
from icrl.fast_encoder import LONGEST_WORD, WordMemo
from icrl.tiny import BASE_DIR
from icrl.tokenizer import ChatTokenizer
from icrl.tokenizer_files import TokenizerFiles, find_tokenizer_files

pytest.importorskip("tiktoken")

LETTERS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PATTERNS = {"qwen2": LETTERS + r"\p{N}" + REST, "llama3": LETTERS + r"\p{N}{1,3}" + REST, "gpt2": None}
KINDS = ["embedded", *PATTERNS]

PIECES = [" ", "  ", "   ", "\n", "\n\n", "\r\n", "\t", "a", "the", " the", "Ab", "7", "1234567", "'s", "'LL", "'ſ"]
PIECES += [
    "’",
    "é",
    "e\u0301",
    "ß",
    "你好",
    "ไทย",
    "😀",
    "👩\u200d👧",
    "\u200b",
    "\u3000",
    "\xa0",
    "\x85",
    "\x1c",
    "\x00",
]
PIECES += ["ﬆ", "Ǆ", "٣", "Ⅷ", "<|im_end|>", "</", "```", "{/", "==", "//", "def f(x):\n    return x", "[[", "…"]
PIECES += ["\x00", "\U00010d4a", "\u0378"]
texts = st.lists(st.sampled_from(PIECES) | st.text(st.characters(exclude_categories=["Cs"]), max_size=4), max_size=24)


def train(pattern: str | None) -> TokenizerFiles:
    """Train a vocabulary that has seen words, programs, numbers, spaces and other scripts."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
    split = [] if pattern is None else [pre_tokenizers.Split(Regex(pattern), "isolated")]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*split, level]) if split else level
    tokenizer.decoder = decoders.ByteLevel()
    draw = random.Random(0)
    mixed = ["".join(draw.choices(PIECES, k=40)) for _ in range(3000)]
    programs = [inspect.getsource(m) for m in (json, random, shutil, inspect, logging)]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=6000, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([*mixed, *programs], trainer)
    return TokenizerFiles(name="trained", pipeline=json.loads(tokenizer.to_str()), settings={}, templates={}, model=())


@pytest.fixture(scope="module")
def files():
    return {"embedded": find_tokenizer_files(BASE_DIR)} | {name: train(p) for name, p in PATTERNS.items()}


@pytest.fixture(scope="module", params=[False, True], ids=["memo", "fast"])
def encoders(files, request):
    return {name: WordMemo(f.pipeline, f.plain, fast=request.param) for name, f in files.items()}


def original(files, text):
    return files.plain.encode(text, add_special_tokens=False).ids


# ---- the same ids


@pytest.mark.parametrize("kind", KINDS)
@given(pieces=texts)
@example(pieces=[" " * 300, "x", " " * 299])
@example(pieces=["a" * 500, "\n" * 500, "ab" * 500])
@example(pieces=["'", "ſ", "'S'sS"])
def test_ids_are_those_of_the_original(files, encoders, kind, pieces):
    text = "".join(pieces)
    assert encoders[kind].encode(text) in (None, original(files[kind], text))


@pytest.mark.parametrize("kind", KINDS)
def test_programs_and_prose_are_taken(files, encoders, kind):
    for text in (
        "",
        inspect.getsource(argparse),
        " ".join(PIECES[:10]) * 50,
        "naïve “quotes” – 你好 😀",
        " " * 10_000 + "x" + "a" * 10_000,
    ):
        assert encoders[kind].encode(text) == original(files[kind], text)


@pytest.mark.parametrize("kind", KINDS)
def test_every_character_that_is_taken_is_sorted_alike(files, encoders, kind):
    characters = [chr(code) for code in (*range(0x3000), *range(0x3000, 0xD800, 15), *range(0xE000, 0x20000, 21))]
    written = [f"a{c}1{c} {c}'{c}s" for c in characters]
    taken = [(text, ids) for text in written if (ids := encoders[kind].encode(text)) is not None]
    assert len(taken) > 10_000
    encodings = files[kind].plain.encode_batch([text for text, _ in taken], add_special_tokens=False)
    assert [ids for _, ids in taken] == [encoding.ids for encoding in encodings]


def test_doubtful_texts_are_left_to_the_original(encoders):
    encoder = encoders["qwen2"]
    assert encoder.encode("\u200b") is None  # was a space once
    assert encoder.encode("\u0378") is None  # may become a letter
    assert encoder.encode("\ud800") is None
    assert encoder.encode("\U0001d400") is None  # a letter beyond the first plane
    assert encoder.encode("\U0001f600") is not None


@pytest.mark.parametrize("kind", KINDS)
def test_words_are_remembered_up_to_a_bound(files, encoders, kind, monkeypatch):
    monkeypatch.setattr(fast_encoder, "MOST_WORDS", 90)
    memo, text = encoders[kind], inspect.getsource(argparse)
    memo._known.clear()
    assert memo.encode(text) == memo.encode(text) == original(files[kind], text)
    assert 0 < len(memo._known) <= 90
    memo._known.clear()
    assert memo.encode("x" * (LONGEST_WORD + 1)) == original(files[kind], "x" * (LONGEST_WORD + 1))
    assert not memo._known


def test_a_tokenizer_with_unknown_words_does_without(files, caplog):
    other = changed(files["embedded"], pre_tokenizer=split(r"[a-z]+|[^a-z]+"))
    with pytest.raises(ConfigError, match="not known here"):
        WordMemo(other.pipeline, other.plain)
    settings = {"eos_token": "<|im_end|>"}
    with caplog.at_level(logging.DEBUG, logger="icrl.tokenizer"):
        tokenizer = ChatTokenizer(replace(other, settings=settings), encoder="huggingface")
        assert [tokenizer.encode("one two " * 99) for _ in range(2)] == [original(other, "one two " * 99)] * 2
    assert caplog.text.count("not known here") == 1


# ---- what it does not fit


def changed(files: TokenizerFiles, **model) -> TokenizerFiles:
    pipeline = copy.deepcopy(dict(files.pipeline))
    pipeline |= {key: model.pop(key) for key in ("pre_tokenizer", "normalizer") if key in model}
    pipeline["model"] |= model
    return TokenizerFiles(name="changed", pipeline=pipeline, settings={}, templates={}, model=())


def level(**options) -> dict:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False} | options


def split(pattern: str, **options) -> dict:
    plain = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [plain | options, level()]}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dropout": 0.1}, "no plain BPE"),
        ({"normalizer": {"type": "Lowercase"}}, "normalises text"),
        ({"pre_tokenizer": None}, "not known here"),
        ({"pre_tokenizer": level()}, "not known here"),
        ({"pre_tokenizer": level(use_regex=True, add_prefix_space=True)}, "not known here"),
        ({"pre_tokenizer": split(r"\w+|\W+")}, "not known here"),
        ({"pre_tokenizer": split(PATTERNS["qwen2"], behavior="Removed")}, "not known here"),
        ({"pre_tokenizer": split(PATTERNS["qwen2"], invert=True)}, "not known here"),
    ],
)
def test_other_forms_are_refused(files, change, reason):
    other = changed(files["qwen2"], **change)
    with pytest.raises(ConfigError, match=reason):
        WordMemo(other.pipeline, files["qwen2"].plain)


def small(*merges: tuple[str, str], more: tuple[str, ...] = (), **options) -> TokenizerFiles:
    words = [*byte_alphabet(), *dict.fromkeys(a + b for a, b in merges), *more]
    vocabulary = {word: i for i, word in enumerate(words)}
    model = {"type": "BPE", "vocab": vocabulary, "merges": [list(merge) for merge in merges], **options}
    pipeline = {"pre_tokenizer": split(PATTERNS["qwen2"]), "decoder": level(), "model": model}
    pipeline |= {"version": "1.0", "added_tokens": [], "normalizer": None, "post_processor": None}
    return TokenizerFiles(name="small", pipeline=pipeline, settings={}, templates={}, model=())


def test_an_entry_that_its_own_bytes_do_not_make_is_refused():
    # Hugging Face's "abc" is a and bc, as these merge first, and that pair makes nothing; tiktoken would find the word.
    unreachable = small(("b", "c"), ("a", "b"), ("ab", "c"))
    assert len(original(unreachable, "abc")) == 2
    with pytest.raises(ConfigError, match="'abc' is not what"):
        WordMemo(unreachable.pipeline, unreachable.plain, fast=True)


def test_an_entry_with_two_ranks_is_refused():
    twice = small(("a", "b"), ("b", "c"), ("a", "bc"), ("b", "b"), ("ab", "c"))
    with pytest.raises(ConfigError, match="several ranks"):
        WordMemo(twice.pipeline, twice.plain, fast=True)


def test_an_entry_that_nothing_makes_counts_only_where_words_are_looked_up_whole():
    ignored = small(("a", "b"), more=("zzz",))
    assert WordMemo(ignored.pipeline, ignored.plain, fast=True).encode("zzz ab") == original(ignored, "zzz ab")
    found = small(("a", "b"), more=("zzz",), ignore_merges=True)
    with pytest.raises(ConfigError, match="'zzz' is not what"):
        WordMemo(found.pipeline, found.plain, fast=True)


def test_a_vocabulary_without_all_bytes_is_refused():
    part = small()
    del part.pipeline["model"]["vocab"]["a"]
    with pytest.raises(ConfigError, match="a byte has no id"):
        WordMemo(part.pipeline, part.plain, fast=True)


def test_merges_may_be_written_as_text():
    old = small(("a", "b"), ("ab", "c"))
    old.pipeline["model"]["merges"] = ["a b", "ab c"]
    assert WordMemo(old.pipeline, old.plain, fast=True).encode("abc") == original(old, "abc") == [257]


# ---- in a tokenizer


@pytest.fixture(scope="module")
def fast():
    return ChatTokenizer.load(BASE_DIR, encoder="fast")


@pytest.fixture(scope="module")
def slow():
    return ChatTokenizer.load(BASE_DIR, encoder="huggingface")


@given(pieces=texts)
def test_a_tokenizer_is_the_same_with_either(fast, slow, pieces):
    text = "".join(pieces)
    assert fast.encode(text) == slow.encode(text)
    assert fast.encode_batch([text, "x"]) == slow.encode_batch([text, "x"])
    assert fast.decode(fast.encode(text)) == text
    assert not fast._added.keys() & set(fast.encode(text))


@pytest.mark.parametrize("text", ["ab\ud800", "\udc00" * 300, "é" + "\ud83d"])
def test_half_a_surrogate_pair_is_refused_alike(fast, slow, text):
    messages = []
    for tokenizer in (fast, slow):
        with pytest.raises(DataError, match="half of a surrogate pair") as error:
            tokenizer.encode(text)
        messages.append(str(error.value))
        with pytest.raises(DataError, match="half of a surrogate pair"):
            tokenizer.encode_batch(["x", text])
    assert messages[0] == messages[1]


async def test_better_encoders_are_made_once_they_are_worth_it(monkeypatch, slow):
    # On the loop, which making them must not block.
    monkeypatch.setattr(module, "WORTH_CHARACTERS", 2000)
    monkeypatch.setattr(module, "WORTH_WORDS", 500)
    tokenizer = await asyncio.to_thread(ChatTokenizer.load, BASE_DIR)
    assert tokenizer.encode("short") == slow.encode("short")
    assert tokenizer._words is None
    tokenizer.encode("word " * 500)
    await until(lambda: tokenizer._words and tokenizer._improves)
    first = tokenizer._words
    text = inspect.getsource(argparse)
    assert tokenizer.encode(text) == tokenizer.encode(text) == slow.encode(text)
    await until(lambda: tokenizer._words is not first)
    assert tokenizer.encode(text) == slow.encode(text)
    assert not tokenizer._improves


def test_what_does_not_fit_is_said_once_and_goes_on(monkeypatch, caplog, slow):
    def refuse(*_: object, **__: object) -> None:
        raise ConfigError("encoder: no")

    monkeypatch.setattr(module, "WordMemo", refuse)
    with pytest.raises(ConfigError, match="encoder: no"):
        ChatTokenizer.load(BASE_DIR, encoder="fast")
    monkeypatch.setattr(module, "WORTH_CHARACTERS", 100)
    tokenizer = ChatTokenizer.load(BASE_DIR)
    with caplog.at_level(logging.DEBUG, logger="icrl.tokenizer"):
        for _ in range(3):
            assert tokenizer.encode("word " * 50) == slow.encode("word " * 50)
        deadline = time.monotonic() + 10
        while not caplog.records and time.monotonic() < deadline:
            time.sleep(0.01)
    assert [record.levelname for record in caplog.records] == ["DEBUG"]
    assert "encoder: no" in caplog.text


def test_without_tiktoken_the_message_says_what_to_install(monkeypatch, files):
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    with pytest.raises(ConfigError, match=r"pip install 'icrl\[fast\]'"):
        WordMemo(files["embedded"].pipeline, files["embedded"].plain, fast=True)


def test_the_alphabet_has_every_byte_once():
    assert sorted(byte_alphabet().values()) == list(range(256))
    assert word_bytes("Ġthe", byte_alphabet()) == b" the"
    assert word_bytes("你", byte_alphabet()) == "你".encode()
