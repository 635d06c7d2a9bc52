"""LangChain's client for OpenAI, unchanged, on a running server."""

from __future__ import annotations

import asyncio

import pytest

from icrl.testing import ScriptedEngine

chat = pytest.importorskip("langchain_openai", reason="langchain-openai is not installed: pip install langchain-openai")
pytestmark = [pytest.mark.sdk, pytest.mark.filterwarnings("default")]

USES_TOOL = ["<think> hm </think>\n<echo> a fox </echo>", "<think> so </think>\n<answer> A fox. </answer>"]


@pytest.fixture
async def model(serve):
    """A function that makes a chat model on a server of its own."""

    async def make(replies=USES_TOOL, **options):
        server = await serve(replies)
        settings = {"base_url": str(server.make_url("/v1")), "api_key": "none", "max_retries": 0}
        return chat.ChatOpenAI(model="icrl", **settings, **options)

    return make


@pytest.mark.parametrize("responses", [False, True])
async def test_invoke(model, responses):
    llm = await model(use_responses_api=responses)
    message = await asyncio.to_thread(llm.invoke, "Who?")
    assert message.text == "A fox."
    assert message.usage_metadata["total_tokens"] > 0
    assert (await llm.ainvoke("Who?")).text == "A fox."


@pytest.mark.parametrize("responses", [False, True])
async def test_stream(model, responses):
    llm = await model(use_responses_api=responses)
    assert "".join([chunk.text async for chunk in llm.astream("Who?")]) == "A fox."
    assert "".join(await asyncio.to_thread(lambda: [chunk.text for chunk in llm.stream("Who?")])) == "A fox."


@pytest.mark.parametrize("responses", [False, True])
async def test_a_conversation_goes_on(model, responses):
    engine = ScriptedEngine(["<echo> a fox </echo>", "<answer> A fox. </answer>"])
    llm = await model(engine, use_responses_api=responses)
    first = await llm.ainvoke([("system", "Be brief."), ("user", "Who?")])
    second = await llm.ainvoke([("user", "Who?"), first, ("user", "Why?")])
    assert second.text == "A fox."
    assert "<answer> A fox. </answer>" in engine.tokenizer.decode(engine.requests[-2].ids)


async def test_settings_are_understood(model):
    engine = ScriptedEngine(["<answer> one END two </answer>"])
    llm = await model(engine, temperature=0, top_p=0.5, max_tokens=99, seed=3, n=2, stop=["END"], logprobs=True)
    message = await llm.ainvoke("Who?")
    assert message.text == "one "
    assert "".join(entry["token"] for entry in message.response_metadata["logprobs"]["content"]) == "one "
    params = engine.requests[-1].params
    assert (params.temperature, params.top_p, params.max_tokens) == (0.0, 0.5, 99)
