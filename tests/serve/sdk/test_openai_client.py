"""OpenAI's own client, unchanged, against a running server."""

from __future__ import annotations

import asyncio

import pytest
from watched import until

from icrl.serve.config import AdmissionConfig
from icrl.testing import HangingTool, ScriptedEngine

openai = pytest.importorskip("openai", reason="the openai client is not installed: pip install openai")
pytestmark = pytest.mark.sdk

USES_TOOL = ["<think> hm </think>\n<echo> a fox </echo>", "<think> so </think>\n<answer> Ein Füchslein. </answer>"]
WHO = [{"role": "user", "content": "Who?"}]


@pytest.fixture
async def clients(serve):
    """A function that starts a server and gives the synchronous and the asynchronous client for it."""
    made = []

    async def start(model=USES_TOOL, *, key="none", **options):
        server = await serve(model, **options)
        settings = {"base_url": str(server.make_url("/v1")), "api_key": key, "max_retries": 0}
        made.append((openai.OpenAI(**settings), openai.AsyncOpenAI(**settings)))
        return made[-1]

    yield start
    for sync, other in made:
        sync.close()
        await other.close()


async def test_chat(clients):
    sync, other = await clients()

    def ask():
        return sync.chat.completions.create(model="icrl", messages=WHO, logprobs=True)

    completion = await asyncio.to_thread(ask)
    assert (await other.chat.completions.create(model="scripted", messages=WHO)).choices[0].message.content
    (choice,) = completion.choices
    assert (choice.message.content, choice.finish_reason, choice.message.tool_calls) == ("Ein Füchslein.", "stop", None)
    assert choice.message.reasoning_content == "hm\nso"
    assert choice.message.icrl["tool_calls"][0]["output"] == "a fox"
    assert len(choice.logprobs.content) == len("Ein Füchslein.".encode())
    usage = completion.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.completion_tokens_details.reasoning_tokens == len(" hm  so ")


async def test_a_chat_goes_on_with_what_it_was_given(clients):
    engine = ScriptedEngine(["<answer> Ein Füchslein. </answer>"])
    _, client = await clients(engine)
    first = await client.chat.completions.create(model="icrl", messages=WHO)
    messages = [*WHO, first.choices[0].message, {"role": "user", "content": "Why?"}]
    await client.chat.completions.create(model="icrl", messages=messages)
    assert "<answer> Ein Füchslein. </answer>" in engine.tokenizer.decode(engine.requests[-1].ids)


async def test_streamed_chat(clients):
    sync, other = await clients()
    options = {"model": "icrl", "messages": WHO, "stream": True, "stream_options": {"include_usage": True}}
    chunks = await asyncio.to_thread(lambda: list(sync.chat.completions.create(**options)))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "Ein Füchslein."
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].usage.completion_tokens > 0
    said = ""
    async with await other.chat.completions.create(**options) as stream:
        async for chunk in stream:
            said += chunk.choices[0].delta.content or "" if chunk.choices else ""
    assert said == "Ein Füchslein."


async def test_the_streaming_helper(clients):
    _, client = await clients()
    async with client.chat.completions.stream(model="icrl", messages=WHO) as stream:
        kinds = [event.type async for event in stream]
        final = await stream.get_final_completion()
    assert final.choices[0].message.content == "Ein Füchslein."
    assert "content.delta" in kinds
    assert kinds[-1] == "content.done"


async def test_a_response(clients):
    sync, other = await clients()
    response = await asyncio.to_thread(lambda: sync.responses.create(model="icrl", input="Who?"))
    assert (response.output_text, response.status) == ("Ein Füchslein.", "completed")
    assert [item.type for item in response.output] == ["reasoning", "mcp_call", "reasoning", "message"]
    assert response.output[1].output == "a fox"
    assert response.usage.output_tokens_details.reasoning_tokens == len(" hm  so ")
    again = await other.responses.create(model="icrl", input="Why?", previous_response_id=response.id)
    assert (await other.responses.retrieve(again.id)).output_text == "Ein Füchslein."
    assert [item.content async for item in await other.responses.input_items.list(again.id)] == ["Why?"]
    await other.responses.delete(again.id)
    with pytest.raises(openai.NotFoundError):
        await other.responses.retrieve(again.id)


async def test_a_conversation_that_the_client_keeps(clients):
    engine = ScriptedEngine(["<echo> a fox </echo>", "<answer> A fox. </answer>"])
    _, client = await clients(engine)
    items = [{"role": "user", "content": "Who?"}]
    first = await client.responses.create(model="icrl", input=items, store=False)
    items += [*first.output, {"role": "user", "content": "Why?"}]
    await client.responses.create(model="icrl", input=items, store=False)
    text = engine.tokenizer.decode(engine.requests[-2].ids)
    assert "<echo> a fox </echo>\n<information> a fox </information>\n<answer> A fox. </answer>" in text


async def test_a_streamed_response(clients):
    sync, other = await clients()
    events = await asyncio.to_thread(lambda: list(sync.responses.create(model="icrl", input="Who?", stream=True)))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[-1].type == "response.completed"
    assert events[-1].response.output_text == "Ein Füchslein."
    async with other.responses.stream(model="icrl", input="Who?") as stream:
        said = "".join([event.delta async for event in stream if event.type == "response.output_text.delta"])
        final = await stream.get_final_response()
    assert said == final.output_text == "Ein Füchslein."


async def test_a_response_is_cancelled(clients):
    tool = HangingTool()
    _, client = await clients(["<think> hm </think><hang> x </hang>"], agent={"tools": [tool]})
    async with await client.responses.create(model="icrl", input="Who?", stream=True) as stream:
        opened = await anext(aiter(stream))
        await until(lambda: tool.calls)
        cancelled = await client.responses.cancel(opened.response.id)
        assert (cancelled.status, cancelled.id) == ("cancelled", opened.response.id)
        kinds = [event.type async for event in stream]
    assert kinds[-1] == "response.incomplete"


async def test_errors_are_the_clients_own(clients, monkeypatch):
    _, client = await clients(admission=AdmissionConfig(max_body_bytes=2000))
    with pytest.raises(openai.BadRequestError) as raised:
        await client.chat.completions.create(model="icrl", messages=WHO, temperature=3)
    assert (raised.value.param, raised.value.status_code) == ("temperature", 400)
    with pytest.raises(openai.BadRequestError) as raised:
        await client.responses.create(model="icrl", input="Who?", top_p=7)
    assert raised.value.param == "top_p"
    with pytest.raises(openai.NotFoundError) as raised:
        await client.chat.completions.create(model="gpt-5", messages=WHO)
    assert raised.value.code == "model_not_found"
    with pytest.raises(openai.APIStatusError) as raised:
        await client.responses.create(model="icrl", input="x" * 3000)
    assert raised.value.status_code == 413
    monkeypatch.setenv("ICRL_API_KEY", "right")
    _, client = await clients(key="wrong")
    with pytest.raises(openai.AuthenticationError):
        await client.models.list()


async def test_an_engine_that_breaks_is_an_api_error(clients):
    _, client = await clients(["<echo> a fox </echo>"])  # and the script has no second turn
    with pytest.raises(openai.InternalServerError):
        await client.chat.completions.create(model="icrl", messages=WHO)
    with pytest.raises(openai.APIError, match="engine failed"):
        async for _ in await client.chat.completions.create(model="icrl", messages=WHO, stream=True):
            pass
    events = [event async for event in await client.responses.create(model="icrl", input="Who?", stream=True)]
    assert events[-1].type == "response.failed"
    assert events[-1].response.error.message == "the engine failed while answering"


async def test_a_client_that_stops_reading_ends_the_work(clients):
    tool = HangingTool()
    _, client = await clients(["<think> hm </think><hang> x </hang>"], agent={"tools": [tool]})
    async with await client.chat.completions.create(model="icrl", messages=WHO, stream=True) as stream:
        await anext(aiter(stream))
        await until(lambda: tool.calls)
    await until(lambda: tool.cancellations)


async def test_models(clients):
    _, client = await clients()
    assert [model.id async for model in client.models.list()] == ["scripted"]
    assert (await client.models.retrieve("icrl")).owned_by == "icrl"
