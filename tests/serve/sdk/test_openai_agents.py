"""OpenAI's agents, unchanged, on a running server."""

from __future__ import annotations

import pytest

from icrl.testing import ScriptedEngine

agents = pytest.importorskip("agents", reason="openai-agents is not installed: pip install openai-agents")
openai = pytest.importorskip("openai")
pytestmark = [pytest.mark.sdk, pytest.mark.filterwarnings("default")]

USES_TOOL = ["<think> hm </think>\n<echo> a fox </echo>", "<think> so </think>\n<answer> A fox. </answer>"]
MODELS = ["OpenAIResponsesModel", "OpenAIChatCompletionsModel"]


@pytest.fixture
async def assistant(serve):
    """A function that makes an agent on a server of its own."""
    agents.set_tracing_disabled(True)
    clients = []

    async def make(kind, model=USES_TOOL):
        server = await serve(model)
        clients.append(openai.AsyncOpenAI(base_url=str(server.make_url("/v1")), api_key="none", max_retries=0))
        chosen = getattr(agents, kind)(model="icrl", openai_client=clients[-1])
        return agents.Agent(name="Asker", instructions="Be brief.", model=chosen)

    yield make
    for client in clients:
        await client.close()


@pytest.mark.parametrize("kind", MODELS)
async def test_a_run(assistant, kind):
    result = await agents.Runner.run(await assistant(kind), "Who?")
    assert result.final_output == "A fox."


@pytest.mark.parametrize("kind", MODELS)
async def test_a_streamed_run(assistant, kind):
    result = agents.Runner.run_streamed(await assistant(kind), "Who?")
    said = ""
    async for event in result.stream_events():
        if event.type == "raw_response_event" and event.data.type == "response.output_text.delta":
            said += event.data.delta
    assert (said, result.final_output) == ("A fox.", "A fox.")


@pytest.mark.parametrize("kind", MODELS)
async def test_a_conversation_goes_on(assistant, kind):
    engine = ScriptedEngine(["<echo> a fox </echo>", "<answer> A fox. </answer>"])
    asker = await assistant(kind, engine)
    first = await agents.Runner.run(asker, "Who?")
    second = await agents.Runner.run(asker, [*first.to_input_list(), {"role": "user", "content": "Why?"}])
    assert second.final_output == "A fox."
    text = engine.tokenizer.decode(engine.requests[-2].ids)
    assert "Be brief." in text
    assert "<answer> A fox. </answer>" in text
    assert text.rstrip().endswith("Question: Why?\nassistant")


async def test_usage_is_counted(assistant):
    result = await agents.Runner.run(await assistant("OpenAIResponsesModel"), "Who?")
    usage = result.context_wrapper.usage
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens > 0
    assert usage.output_tokens_details.reasoning_tokens == len(" hm  so ")
