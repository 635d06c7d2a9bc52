from __future__ import annotations

import json
from pathlib import Path

import pytest

from icrl.errors import ConfigError, EngineError
from icrl.runtime.engines.sglang.client import Client
from icrl.runtime.engines.sglang.config import SGLangConfig
from icrl.runtime.engines.sglang.connect import read_facts
from icrl.runtime.engines.sglang.facts import ServerFacts, parse_version
from icrl.testing import ByteTokenizer, SGLangStub
from icrl.tokenizer import Tokenizer


async def facts_of(stub: SGLangStub, tokenizer: Tokenizer | None = None) -> ServerFacts:
    async with stub:
        client = Client(stub.address)
        try:
            return await read_facts(client, tokenizer=tokenizer, timeout_s=5)
        finally:
            await client.aclose()


def write_config(directory: Path, **config: object) -> str:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return str(directory)


@pytest.mark.parametrize("version", ["0.5.19", "0.5.20", "0.5.21", "0.5.22", "0.5.23"])
async def test_facts_are_read_from_every_version(version: str, tmp_path: Path) -> None:
    model = write_config(tmp_path, vocab_size=321)
    facts = await facts_of(SGLangStub([], version=version, model_path=model, context_limit=100))
    assert facts.version == parse_version(version)
    assert (facts.vocab_size, facts.model_path, facts.tokenizer_path) == (321, model, model)
    assert facts.context_limit == 94  # the server keeps a few tokens for itself
    assert (facts.weight_version, facts.deterministic) == ("default", False)
    assert facts.brackets_updates == (facts.version >= (0, 5, 21))


@pytest.mark.parametrize("version", ["0.5.18", "0.4.9"])
async def test_an_older_server_is_refused_with_the_reason(version: str) -> None:
    with pytest.raises(EngineError, match=rf"runs SGLang {version}; 0\.5\.19 or later .* which weights .* pip install"):
        await facts_of(SGLangStub([], version=version), ByteTokenizer())


async def test_the_vocabulary_of_a_text_model_may_be_nested(tmp_path: Path) -> None:
    model = write_config(tmp_path, text_config={"vocab_size": 7})
    assert (await facts_of(SGLangStub([], model_path=model))).vocab_size == 7


async def test_the_vocabulary_may_be_in_the_hubs_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    write_config(tmp_path / "hub" / "models--org--name" / "snapshots" / "abc", vocab_size=11)
    assert (await facts_of(SGLangStub([], model_path="org/name"))).vocab_size == 11


async def test_a_tokenizer_tells_the_vocabulary_of_a_model_that_is_elsewhere() -> None:
    tokenizer = ByteTokenizer()
    assert (await facts_of(SGLangStub([]), tokenizer)).vocab_size == tokenizer.vocab_size


async def test_an_unknown_vocabulary_names_the_fix(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{", encoding="utf-8")
    for model in (str(tmp_path), "/no/such/dir", "org/unknown"):
        with pytest.raises(ConfigError, match=r"pass the model's tokenizer, or fetch its files: hf download"):
            await facts_of(SGLangStub([], model_path=model))


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/server_info", {"nothing": 1}, "/server_info is not what an SGLang server says"),
        ("/model_info", [], "/model_info is not what an SGLang server says"),
        ("/model_info", {"model_path": "m", "is_generation": False}, "does not generate"),
        ("/v1/models", {"data": [{}]}, "does not state max_model_len"),
    ],
)
async def test_something_else_is_told_from_a_server(path: str, body: object, message: str) -> None:
    stub = SGLangStub([])
    stub.refuse(path, status=200, body=body)
    with pytest.raises(EngineError, match=message):
        await facts_of(stub, ByteTokenizer())


@pytest.mark.parametrize(
    ("text", "version"),
    [("0.5.23", (0, 5, 23)), ("v0.6", (0, 6, 0)), ("0.5.20.post1", (0, 5, 20)), ("0.5.24.dev1+gabc", (0, 5, 24))],
)
def test_versions_are_numbers(text: str, version: tuple[int, int, int]) -> None:
    assert parse_version(text) == version


@pytest.mark.parametrize("field", ["stall_s", "answer_s", "abort_s", "stream_from", "chunk_tokens", "delta_tokens"])
def test_settings_are_positive(field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        SGLangConfig(**{field: 0})


def test_long_generations_are_streamed_in_a_bounded_number_of_events() -> None:
    config = SGLangConfig()
    assert config.events_of(1023, watched=False) is None
    assert config.events_of(10, watched=True) == 4
    assert [config.events_of(n, watched=False) for n in (1024, 2048, 32768)] == [256, 256, 4096]
