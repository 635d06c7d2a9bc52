from __future__ import annotations

import asyncio

import pytest
from chat_endpoint import chat_endpoint

from icrl.errors import ConfigError, EngineError
from icrl.runtime.agent import Agent
from icrl.runtime.dialect import XmlDialect
from icrl.runtime.engines.address import connect, is_address, name_of, open_address, read_urls
from icrl.runtime.engines.openai import OpenAIEngine
from icrl.runtime.model import find_model, open_model
from icrl.runtime.settings import AgentSettings
from icrl.testing import ByteTokenizer, SGLangStub
from icrl.tiny import BASE_DIR
from icrl.tokenizer import ChatTokenizer
from icrl.types import SamplingParams

SETTINGS = AgentSettings.load(BASE_DIR) or AgentSettings()
ANSWER = "<answer> 42 </answer>"


@pytest.fixture(scope="module")
def tiny():
    return ChatTokenizer.load(BASE_DIR)


def stub_of(tokenizer, **options):
    return SGLangStub(lambda ids: ANSWER, **({"tokenizer": tokenizer, "model_path": str(BASE_DIR)} | options))


def test_addresses_are_parted_and_checked():
    assert read_urls(" http://a:1/ ,https://b ,") == ("http://a:1", "https://b")
    for address, message in [
        ("http://", "'http:' is no server's address"),
        ("http://a:1,ftp://b", "'ftp://b' is no server's address"),
        ("http://a:1/v1", "has a path; .* is written 'openai:http://a:1/v1'"),
        ("http://a:1,http://a:1/", "names 'http://a:1' twice"),
        (" , ", "is empty"),
    ]:
        with pytest.raises(ConfigError, match=message):
            read_urls(address)


def test_names():
    assert name_of("http://a:1,http://b:2") == "a:1"
    assert name_of("openai:http://a:1/v1") == "a:1"
    assert not is_address(BASE_DIR)
    with pytest.raises(ConfigError, match="is an address; here a directory or a hub name is needed"):
        find_model("http://127.0.0.1:30000")


async def test_servers_say_what_tokenizer_and_settings_they_need(tiny):
    async with stub_of(tiny) as one, stub_of(tiny) as two:
        model = await open_model(f"{one.address}, {two.address}")
        try:
            assert model.tokenizer.name == str(BASE_DIR)
            assert model.settings == SETTINGS
            assert model.engine.info.name == f"pool of {one.address}, {two.address}"
        finally:
            await model.aclose()
        result = await Agent(f"{one.address},{two.address}", tools=[]).run("What?")
    assert result.answer == "42"
    assert len(one.requests) + len(two.requests) == 1


async def test_a_tokenizer_may_be_given(tiny):
    async with stub_of(ByteTokenizer(), model_path="/not/here") as stub:
        with pytest.raises(ConfigError, match=r"tokenizer: .*'/not/here'"):
            await connect(stub.address)
        pool, tokenizer = await connect(stub.address, tokenizer=ByteTokenizer())
        reply = await pool.generate([65], SamplingParams(), request_id="r")
        assert tokenizer.decode(reply.ids) == ANSWER
        await pool.aclose()
        with pytest.raises(ConfigError, match="tokenizer: 'nowhere' is neither a directory"):
            await connect(stub.address, tokenizer="nowhere")
    async with stub_of(tiny, model_path="/not/here") as stub:
        pool, tokenizer = await connect(stub.address, tokenizer=BASE_DIR)
        assert tokenizer.name == str(BASE_DIR)
        connection = await open_address(stub.address, tokenizer=str(BASE_DIR))
        assert connection.directory is None
        await connection.engine.aclose()
        await pool.aclose()


async def test_a_tokenizer_of_another_model_is_refused(tiny):
    async with stub_of(tiny, vocab_size=None) as stub:
        before = asyncio.all_tasks()
        with pytest.raises(ConfigError, match=r"tokens, the model of .* only"):
            await connect(stub.address, tokenizer=Larger())
        await asyncio.sleep(0)
        assert not [task for task in asyncio.all_tasks() - before if "_watch" in repr(task)]


class Larger(ByteTokenizer):
    vocab_size = 1 << 20


async def test_the_key_comes_from_the_environment(tiny, monkeypatch):
    async with stub_of(tiny, api_key="secret") as stub:
        with pytest.raises(EngineError, match="401"):
            await connect(stub.address)
        monkeypatch.setenv("ICRL_ENGINE_KEY", "secret")
        pool, _ = await connect(stub.address)
        await pool.aclose()


async def test_another_kind_of_server_is_told_apart():
    async with chat_endpoint() as endpoint:
        address = endpoint.url.removesuffix("/v1")
        with pytest.raises(ConfigError, match=f"is no SGLang server .* is written 'openai:{address}/v1'"):
            await connect(address)


async def test_nobody_there():
    with pytest.raises(EngineError, match="cannot be reached"):
        await connect("http://127.0.0.1:9")
    with pytest.raises(EngineError, match=r"no server answers: http://127.0.0.1:9: .*cannot be reached"):
        await connect("http://127.0.0.1:9", tokenizer=ByteTokenizer())


async def test_one_of_several_is_enough_to_begin(tiny):
    async with stub_of(tiny) as stub:
        pool, _ = await connect(f"http://127.0.0.1:9,{stub.address}")
        assert [member.state for member in pool.members] == ["away", "used"]
        assert pool.members[0].name == "http://127.0.0.1:9"
        await pool.aclose()


async def test_a_chat_endpoint_is_opened_by_its_prefix():
    async with chat_endpoint(ANSWER) as endpoint:
        with pytest.raises(ConfigError, match="takes no tokenizer"):
            await open_address(f"openai:{endpoint.url}", tokenizer="x")
        model = await open_model(f"openai:{endpoint.url}")
        assert isinstance(model.engine, OpenAIEngine)
        assert isinstance(model.dialect, XmlDialect)
        assert model.engine.model == "large"
        await model.aclose()


async def test_a_tool_that_is_not_there_closes_the_connection(tiny, monkeypatch):
    closed = []
    async with stub_of(tiny) as stub:
        from icrl.runtime.engines.pool import EnginePool

        aclose = EnginePool.aclose

        async def noting(self):
            closed.append(self.info.name)
            await aclose(self)

        monkeypatch.setattr(EnginePool, "aclose", noting)
        with pytest.raises(ConfigError, match="serch"):
            await open_model(stub.address, tools=["serch"])
        assert closed == [stub.address]
