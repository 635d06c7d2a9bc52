"""Fixtures that several test files share."""

from __future__ import annotations

import gc
import importlib.util
import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import hypothesis
import pytest
from blockbuster import BlockBuster, blockbuster_ctx

from icrl.tiny import BASE_DIR
from icrl.tokenizer import ChatTokenizer

# How long an example takes says something of the machine, and nothing of the law.
hypothesis.settings.register_profile("laws", deadline=None)
hypothesis.settings.load_profile("laws")

# Added tokens as in the real models: content, and whether it is a control token.
_QWEN = [("<|endoftext|>", True), ("<|im_start|>", True), ("<|im_end|>", True)]
_QWEN_WORDS = [("<tool_call>", False), ("</tool_call>", False)]
_QWEN3_WORDS = [("<tool_response>", False), ("</tool_response>", False), ("<think>", False), ("</think>", False)]
_LLAMA = ["begin_of_text", "end_of_text", "start_header_id", "end_header_id", "eom_id", "eot_id"]
_MODELS = {
    "qwen2_5": (_QWEN + _QWEN_WORDS, {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}),
    "qwen3": (_QWEN + _QWEN_WORDS + _QWEN3_WORDS, {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}),
    "llama3_2": ([(f"<|{t}|>", True) for t in _LLAMA], {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}),
    "llama3": ([(f"<|{t}|>", True) for t in _LLAMA], {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}),
}
_TEXT = """The quick brown fox jumps over the lazy dog. system user assistant tool name arguments query function
<tools> {"type": "function"} search the web for an answer. You are a helpful assistant. # Tools call one or more"""


def pytest_collection_finish() -> None:
    """Spare what was imported from the collector, which would look through all of it again and again."""
    gc.collect()
    gc.freeze()


@cache
def build_model_directory(model: str, root: Path) -> Path:
    """Write a small byte-level tokenizer with the added tokens and the chat template of a real model."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    added, settings = _MODELS[model]
    words = r"'s|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(words), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([_TEXT], trainer)
    for content, special in added:
        tokenizer.add_tokens([AddedToken(content, special=special, normalized=False)])
    directory = root / model
    directory.mkdir()
    tokenizer.save(str(directory / "tokenizer.json"))
    template = Path(importlib.util.find_spec("trl").origin).parent / "chat_templates" / f"{model}.jinja"
    (directory / "chat_template.jinja").write_text(template.read_text(encoding="utf-8"), encoding="utf-8")
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **settings}
    (directory / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return directory


@pytest.fixture(scope="session", autouse=True)
def blockbuster() -> Iterator[BlockBuster]:
    """Make every blocking call on an event loop fail that our code makes, or has made."""
    with blockbuster_ctx(scanned_modules=["icrl"]) as guard:
        # What an engine says of itself before it is loaded is in one small file. Agents load first, so no run reads it.
        guard.functions["io.TextIOWrapper.read"].can_block_in("icrl/runtime/engines/architecture.py", "read_info")
        # The worker answers its last command and returns at once; there is nothing to wait for but the thread's end.
        guard.functions["threading.Lock.acquire"].can_block_in("icrl/runtime/engines/worker.py", "close")
        # Under --cov, the tracer takes a lock of its own in whatever thread it begins to trace.
        guard.functions["threading.Lock.acquire"].can_block_in("coverage/collector.py", "lock_data")
        yield guard


@pytest.fixture(scope="session")
def model_directory(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Directory of a tokenizer by template name, or of the embedded model (`tiny`)."""
    root = tmp_path_factory.mktemp("models")
    return lambda model: BASE_DIR if model == "tiny" else build_model_directory(model, root)


@pytest.fixture(scope="session")
def chat_tokenizer(model_directory: Callable[[str], Path]) -> Callable[[str], ChatTokenizer]:
    """A loaded tokenizer by template name."""
    return cache(lambda model: ChatTokenizer.load(model_directory(model)))


@pytest.fixture(scope="session")
def cache_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def cache_home(cache_directory: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's cache that all tests share, so that the embedded index is built once."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache_directory))
    return cache_directory
