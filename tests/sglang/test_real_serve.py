"""`icrl serve` in front of a real SGLang server: the same loop, the same protocols, the same answers."""

from __future__ import annotations

import json
import signal

import pytest
from aiohttp import ClientSession, ClientTimeout
from processes import server_process

from icrl import Agent
from icrl.commands.shots import take_shots
from icrl.runtime.agent import whole_turns
from icrl.tiny import DEMONSTRATIONS

pytestmark = [pytest.mark.sglang, pytest.mark.timeout(900)]

QUESTION = "What is the code of Rikor?"
SHOTS = take_shots(DEMONSTRATIONS, 3)
OPTIONS = ("--port", "0", "--shots", "3", "--tools", "search")


async def test_both_protocols_answer_as_the_agent_does(sglang_address, cache_directory):
    agent = Agent(sglang_address, tools=["search"], demonstrations=SHOTS, sampling=whole_turns(0.0))
    alone = (await agent.run(QUESTION)).trajectory
    environment = {"XDG_CACHE_HOME": str(cache_directory)}
    async with (
        server_process("-m", "icrl", "serve", sglang_address, *OPTIONS, env=environment) as server,
        ClientSession(timeout=ClientTimeout(60)) as client,
    ):
        address = await server.address()
        await server.ready()

        async def post(path, body):
            async with client.post(address + path, json={**body, "temperature": 0}) as response:
                assert response.status == 200, await response.text()
                return await response.json()

        answer = await post("/v1/responses", {"input": QUESTION})
        assert answer["status"] == "completed", answer
        assert {item["type"] for item in answer["output"]} >= {"mcp_call", "message"}
        (text,) = [item["content"][0]["text"] for item in answer["output"] if item["type"] == "message"]
        chat = await post("/v1/chat/completions", {"messages": [{"role": "user", "content": QUESTION}]})
        told = await post("/v1/trajectories", {"query": QUESTION})
        assert text.strip() == chat["choices"][0]["message"]["content"].strip() == (alone.answer or "").strip()
        (trajectory,) = told["data"]
        ids = [i for segment in trajectory["segments"] for i in segment["ids"]]
        assert ids == list(alone.ids), json.dumps(told)[:500]
        async with client.get(f"{address}/v1/models") as response:
            assert sglang_address.partition("//")[2] in await response.text()
        server.signal(signal.SIGTERM)
        assert await server.ended() == 0
