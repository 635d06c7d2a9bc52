from __future__ import annotations

from chat_endpoint import chat_endpoint

from icrl.runtime.agent import Agent

ASKED = {"model": "icrl", "messages": [{"role": "user", "content": "six times seven?"}]}


async def test_a_model_that_is_asked_for_text_has_no_logprobs_to_tell(serve):
    async with chat_endpoint(*["<answer> 42 </answer>"] * 2) as endpoint:
        client = await serve(lambda: Agent(f"openai:{endpoint.url}", tools=[]))
        reply = await (await client.post("/v1/chat/completions", json=ASKED)).json()
        assert reply["choices"][0]["message"]["content"] == "42"
        refused = await client.post("/v1/chat/completions", json=ASKED | {"logprobs": True})
        assert (refused.status, (await refused.json())["error"]["param"]) == (400, "logprobs")
