"""The server as operators have it: a process, its signals, its exit code, and what is left of it."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys

import pytest
from aiohttp import ClientConnectorError, ClientSession
from processes import alive, scripted, server_process
from scripted_service import WORDS
from served import events_of, joined
from watched import until

from icrl.cli import main

SERVE = ("-m", "icrl", "serve", "--port", "0")


@pytest.fixture
async def client():
    async with ClientSession() as session:
        yield session


def chat(client, address, text="hi", *, stream=True):
    body = {"messages": [{"role": "user", "content": text}], "stream": stream}
    return client.post(f"{address}/v1/chat/completions", json=body)


async def told(client, address, text="hi"):
    async with chat(client, address, text) as response:
        return joined(await events_of(response))


async def status(client, address, path):
    async with client.get(address + path) as response:
        return response.status, (await response.json())["status"]


async def running(client, address, runs):
    """Wait until so many runs are being worked on."""
    while True:
        async with client.get(f"{address}/metrics") as response:
            if f"icrl_runs_in_flight {runs:.1f}" in await response.text():
                return
        await asyncio.sleep(0.01)


async def test_the_embedded_model_is_loaded_asked_and_ended(client, cache_directory):
    async with server_process(*SERVE, "--shots", "3", env={"XDG_CACHE_HOME": str(cache_directory)}) as server:
        address = await server.address()
        assert await status(client, address, "/health") == (200, "starting")
        assert await status(client, address, "/ready") == (503, "starting")
        async with chat(client, address) as early:
            assert (early.status, early.headers["Retry-After"]) == (503, "1")
        await server.ready()
        assert await status(client, address, "/ready") == (200, "ready")
        body = {"input": "What is the code of Rikor?", "temperature": 0}
        async with client.post(f"{address}/v1/responses", json=body) as response:
            answer = await response.json()
        assert answer["status"] == "completed", answer
        assert {item["type"] for item in answer["output"]} >= {"mcp_call", "message"}
        processes = server.children()
        server.signal(signal.SIGTERM)
        assert await server.ended() == 0
        await until(lambda: not alive(processes))
    logged = [json.loads(line) for line in server.lines if line.startswith("{")]
    assert [(line["path"], line["status"]) for line in logged[-2:]] == [("/ready", 200), ("/v1/responses", 200)]
    assert logged[-1]["trajectories"] == [answer["icrl"]["trajectory_id"]]
    assert not [line for line in server.lines if "Traceback" in line]


@pytest.mark.learning
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_who_was_accepted_is_answered(number, client):
    async with server_process(*scripted(1.0, "--admission.max-running", "6")) as server:
        address = await server.ready()
        asked = [asyncio.create_task(told(client, address)) for _ in range(10)]
        await running(client, address, 6)
        server.signal(number)
        await server.said("draining: 10 requests get 30 s")
        assert await status(client, address, "/health") == (503, "draining")
        assert await status(client, address, "/ready") == (503, "draining")
        async with chat(client, address) as late:
            assert late.status == 503
            assert (await late.json())["error"]["code"] == "not_ready"
        answers = await asyncio.gather(*asked)  # also the four that were still waiting
        assert [answer["content"] for answer in answers] == [WORDS] * 10
        assert await server.ended() == 0
        with pytest.raises(ClientConnectorError):
            await told(client, address)


@pytest.mark.learning
async def test_what_exceeds_the_grace_period_ends_properly(client):
    async with server_process(*scripted(60.0, "--grace-s", "0.2")) as server:
        address = await server.ready()
        asked = [asyncio.create_task(told(client, address)) for _ in range(4)]
        body = {"input": "hi", "stream": True}
        async with client.post(f"{address}/v1/responses", json=body) as native:
            await running(client, address, 5)
            server.signal(signal.SIGTERM)
            events = await events_of(native)
        assert events[-1].event == "response.incomplete"
        assert events[-1].data["response"]["incomplete_details"] == {"reason": "aborted"}
        for answer in await asyncio.gather(*asked):
            assert (answer["finish_reason"], answer["icrl"]["stop_reason"]) == ("stop", "aborted")
            assert WORDS.startswith(answer["content"])
        assert await server.ended() == 0
    assert any("5 requests did not finish within 0.2 s" in line for line in server.lines)


@pytest.mark.learning
async def test_a_second_interrupt_waits_for_nothing(client):
    async with server_process(*scripted(60.0, "--grace-s", "60")) as server:
        address = await server.ready()
        asked = asyncio.create_task(told(client, address))
        await running(client, address, 1)
        server.signal(signal.SIGINT)
        await server.said("draining")
        server.signal(signal.SIGINT)
        await server.said("ending at once")
        assert (await asked)["icrl"]["stop_reason"] == "aborted"
        assert await server.ended(within_s=10.0) == 0


@pytest.mark.learning
async def test_a_signal_while_loading_ends_it(cache_directory):
    async with server_process(*SERVE, env={"XDG_CACHE_HOME": str(cache_directory)}) as server:
        await server.address()
        server.signal(signal.SIGTERM)
        assert await server.ended() == 0
    assert not [line for line in server.lines if "Traceback" in line]


@pytest.mark.learning
async def test_sighup_loads_the_model_anew_without_dropping_a_request(client):
    async with server_process(*scripted(1.0)) as server:
        address = await server.ready()
        asked = [asyncio.create_task(told(client, address)) for _ in range(4)]
        await running(client, address, 4)
        server.signal(signal.SIGHUP)
        await server.said("the new model answers")
        assert not any(task.done() for task in asked)
        assert [answer["content"] for answer in await asyncio.gather(*asked, told(client, address))] == [WORDS] * 5
        server.signal(signal.SIGTERM)
        assert await server.ended() == 0


@pytest.mark.learning
@pytest.mark.parametrize("way", ["drained", "cut", "client gone"])
async def test_no_process_of_a_tool_outlives_the_server(way, client):
    pytest.importorskip("RestrictedPython")
    async with server_process(*scripted(0.0, "--tools", "python", "--grace-s", "0.3")) as server:
        address = await server.ready()
        program = "1 + 1" if way == "drained" else "while True: pass"
        asked = asyncio.create_task(told(client, address, f"say: <python> {program} </python>"))
        if way == "drained":
            answer = await asked
            assert answer["calls"][0]["name"] == "python"
        else:
            await running(client, address, 1)
            await asyncio.sleep(0.3)  # so that the program runs
        processes = server.children()
        assert processes, "the interpreter is a process"
        if way == "client gone":
            asked.cancel()
            await running(client, address, 0)
        server.signal(signal.SIGTERM)
        assert await server.ended() == 0
        await until(lambda: not alive(processes))
        if way == "cut":
            assert (await asked)["icrl"]["stop_reason"] == "aborted"


@pytest.mark.learning
async def test_a_pipe_that_nobody_reads_holds_up_nothing(client):
    command = [sys.executable, *scripted(0.0)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:  # noqa: ASYNC220 - read on demand
        address = (await asyncio.to_thread(server.stderr.readline)).split()[2].rstrip(",")
        assert (await asyncio.to_thread(server.stderr.readline)).startswith("ready")
        for _ in range(20):  # some 400 kB of log, which is more than a pipe holds
            statuses = await asyncio.gather(*(status_of(client, f"{address}/{'x' * 190}") for _ in range(50)))
            assert set(statuses) == {404}
        server.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(server.wait, 20.0) == 0


async def status_of(client, url):
    async with client.get(url) as response:
        return response.status


def test_what_cannot_be_served_is_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("ICRL_API_KEY", raising=False)
    (tmp_path / "first").mkdir()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for argv, problem in (
            (["--port", str(port)], f"port: cannot listen on 127.0.0.1:{port} (Address already in use). Port "),
            (["--host", "192.0.2.1", "--insecure"], "host: cannot listen on 192.0.2.1 (Cannot assign"),
            (["--host", "0.0.0.0"], "host: 0.0.0.0 serves other machines, which needs a key (set ICRL_API_KEY or"),
            ([str(tmp_path / "frist"), "--port", "0"], "holds no model: there is no config.json. Did you mean 'first'"),
            (["--port", "0", "--tools", "serach"], "tools: 'serach' is not one of"),
            (["--port", "0", "--shots", "99"], "shots: 99 were asked for"),
            (["--port", "0", "--api-key-file", str(tmp_path / "none")], "api_key_file:"),
        ):
            assert main(["serve", *argv]) == 2
            error, _hint = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("listening")]
            assert problem in error, error
