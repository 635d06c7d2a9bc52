"""Tools of the client's own through clients that others wrote, unchanged."""

from __future__ import annotations

import asyncio
import json

import pytest
from watched import tool_call

from icrl.testing import ByteTokenizer, EchoTool, ScriptedEngine

openai = pytest.importorskip("openai", reason="the openai client is not installed: pip install openai")
agents = pytest.importorskip("agents", reason="openai-agents is not installed: pip install openai-agents")
langchain = pytest.importorskip(
    "langchain_openai", reason="langchain-openai is not installed: pip install langchain-openai"
)
pytestmark = [pytest.mark.sdk, pytest.mark.filterwarnings("default")]

BYTES = ByteTokenizer()
USER = {"role": "user", "content": "What is the weather in Rikor and Nebar?"}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL = {"name": "weather", "description": "Tell the weather.", "parameters": SCHEMA}
TURN = tool_call("weather", city="Rikor") + tool_call("echo", text="a fox") + tool_call("weather", city="Nebar")


def says(ids) -> str:
    """Ask for the weather of two cities, and tell it."""
    text = BYTES.decode(ids)
    return "Rain in Rikor, sun in Nebar." if "rain\n" in text and "sun\n" in text else TURN


def weather_of(city: str) -> str:
    return {"Rikor": "rain", "Nebar": "sun"}[city]


@pytest.fixture
async def server(serve):
    """A server whose model calls its own tool and the client's in one turn; its address and its engine."""
    engine = ScriptedEngine(says)
    running = await serve(engine, agent={"dialect": "hermes", "tools": [EchoTool()]})
    return {"base_url": str(running.make_url("/v1")), "api_key": "none", "max_retries": 0}, engine


async def test_chat(server):
    settings, engine = server
    async with openai.AsyncOpenAI(**settings) as client:
        options = {"model": "icrl", "tools": [{"type": "function", "function": TOOL}]}
        first = await client.chat.completions.create(messages=[USER], **options)
        assert first.choices[0].finish_reason == "tool_calls"
        message = first.choices[0].message
        messages = [USER, message]
        for call in message.tool_calls:
            told = weather_of(**json.loads(call.function.arguments))
            messages.append({"role": "tool", "tool_call_id": call.id, "content": told})
        second = await client.chat.completions.create(messages=messages, **options)
    assert second.choices[0].message.content == "Rain in Rikor, sun in Nebar."
    assert "a fox\n</tool_response>" in BYTES.decode(engine.requests[-1].ids), "the message was given back whole"


async def test_streamed_chat(server):
    settings, _ = server
    with openai.OpenAI(**settings) as client:

        def ask():
            options = {"model": "icrl", "messages": [USER], "tools": [{"type": "function", "function": TOOL}]}
            with client.chat.completions.stream(**options) as stream:
                kinds = [event.type for event in stream]
                return kinds, stream.get_final_completion().choices[0]

        kinds, choice = await asyncio.to_thread(ask)
    assert "tool_calls.function.arguments.done" in kinds
    assert choice.finish_reason == "tool_calls"
    cities = [json.loads(call.function.arguments)["city"] for call in choice.message.tool_calls]
    assert cities == ["Rikor", "Nebar"]


@pytest.mark.parametrize("stored", [True, False])
async def test_responses(server, stored):
    settings, engine = server
    async with openai.AsyncOpenAI(**settings) as client:
        options = {"model": "icrl", "tools": [{"type": "function", **TOOL}], "store": stored}
        async with client.responses.stream(input=[USER], **options) as stream:
            kinds = [event.type async for event in stream]
            first = await stream.get_final_response()
        assert "response.function_call_arguments.done" in kinds
        told = [
            {
                "type": "function_call_output",
                "call_id": item.call_id,
                "output": weather_of(**json.loads(item.arguments)),
            }
            for item in first.output
            if item.type == "function_call"
        ]
        given = {"previous_response_id": first.id} if stored else {}
        items = told if stored else [USER, *first.output, *told]
        second = await client.responses.create(input=items, **given, **options)
    assert second.output_text == "Rain in Rikor, sun in Nebar."
    assert "a fox\n</tool_response>" in BYTES.decode(engine.requests[-1].ids)


@pytest.mark.parametrize("kind", ["OpenAIResponsesModel", "OpenAIChatCompletionsModel"])
@pytest.mark.parametrize("streamed", [False, True])
async def test_openai_agents(server, kind, streamed):
    settings, _ = server
    agents.set_tracing_disabled(True)
    asked = []

    @agents.function_tool
    def weather(city: str) -> str:
        """Tell the weather."""
        asked.append(city)
        return weather_of(city)

    async with openai.AsyncOpenAI(**settings) as client:
        model = getattr(agents, kind)(model="icrl", openai_client=client)
        agent = agents.Agent(name="Asker", instructions="Be brief.", model=model, tools=[weather])
        if streamed:
            result = agents.Runner.run_streamed(agent, USER["content"])
            async for _ in result.stream_events():
                pass
        else:
            result = await agents.Runner.run(agent, USER["content"])
    assert result.final_output == "Rain in Rikor, sun in Nebar."
    assert sorted(asked) == ["Nebar", "Rikor"]


@pytest.mark.parametrize("responses", [False, True])
@pytest.mark.parametrize("streamed", [False, True])
async def test_langchain(server, responses, streamed):
    from langchain_core.messages import HumanMessage, ToolMessage
    from langchain_core.tools import tool

    @tool
    def weather(city: str) -> str:
        """Tell the weather."""
        return weather_of(city)

    settings, _ = server
    model = langchain.ChatOpenAI(model="icrl", use_responses_api=responses, **settings).bind_tools([weather])
    question = HumanMessage(USER["content"])
    if streamed:
        chunks = [chunk async for chunk in model.astream([question])]
        first = sum(chunks[1:], chunks[0])
    else:
        first = await model.ainvoke([question])
    assert [call["args"] for call in first.tool_calls] == [{"city": "Rikor"}, {"city": "Nebar"}]
    told = [ToolMessage(weather_of(**call["args"]), tool_call_id=call["id"]) for call in first.tool_calls]
    assert (await model.ainvoke([question, first, *told])).text == "Rain in Rikor, sun in Nebar."
