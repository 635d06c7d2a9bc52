from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from icrl.errors import ConfigError, MissingExtraError
from icrl.runtime.tools import mcp as module
from icrl.runtime.tools import retry
from icrl.runtime.tools.mcp import McpServer, open_mcp
from icrl.runtime.tools.tool import ToolPolicy
from icrl.runtime.tools.toolbox import Toolbox
from icrl.types import ToolCall, ToolResult

pytest.importorskip("mcp")

SERVER = Path(__file__).parents[2] / "mcp_server.py"
ROUGH = Path(__file__).parents[2] / "rough_server.py"
PATIENT = ToolPolicy(timeout_s=20.0)


async def ask(toolbox: Toolbox, name: str, /, *, deadline_s: float = 20.0, **arguments: Any) -> ToolResult:
    return await toolbox.run(ToolCall(name=name, arguments=arguments), deadline_s=deadline_s)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def gone(pid: int) -> None:
    async with asyncio.timeout(10):
        while alive(pid):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def rough(**options: Any) -> McpServer:
    return McpServer.stdio(sys.executable, ["-S", str(ROUGH)], **{"policy": PATIENT, **options})


@pytest.fixture
async def local() -> AsyncIterator[Toolbox]:
    """The tools of a server that is a child process."""
    toolbox = Toolbox(await rough(prefix="t_").tools())
    yield toolbox
    await toolbox.aclose()
    assert asyncio.all_tasks() == {asyncio.current_task()}


# ---- stdio


async def test_a_server_of_the_official_library_is_understood():
    server = McpServer.stdio(sys.executable, [str(SERVER)], prefix="t_", policy=PATIENT)
    toolbox = Toolbox(await server.tools())
    specs = {spec.name: spec for spec in toolbox.specs}
    assert specs["t_add"].description == "Add two numbers."
    assert specs["t_add"].parameters["properties"]["a"]["type"] == "integer"
    assert specs["t_add"].parameters["required"] == ["a"]
    assert (await ask(toolbox, "t_add", a=2, b=3)).text == "5"
    assert (await ask(toolbox, "t_picture")).text == "a dot\n[image, image/png, 5 bytes]"
    results = await asyncio.gather(*(ask(toolbox, "t_add", a=number) for number in range(20)))
    assert [result.text for result in results] == [str(number + 1) for number in range(20)]
    refused = await ask(toolbox, "t_add", a="x")
    assert (refused.error, refused.text.startswith("ToolError: ")) == ("ToolError", True)
    assert (await ask(toolbox, "t_read_file", path="a.txt")).error == "ToolError"
    await toolbox.aclose()
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_every_page_of_tools_is_read_and_what_is_not_said_is_filled_in(local):
    assert len(local.specs) == 8
    assert local.specs[0].description == "The tool add of an MCP server."
    assert local.specs[0].parameters == {"type": "object", "properties": {}}


async def test_an_error_of_the_protocol_is_for_the_model_to_read(local):
    assert (await ask(local, "t_add", b=1)).text.startswith("ToolError: no: ")


async def test_a_call_that_hangs_ends_at_its_deadline_and_the_server_goes_on(local):
    started = time.monotonic()
    assert (await ask(local, "t_wait", seconds=60, deadline_s=0.2)).error == "ToolTimeout"
    assert time.monotonic() - started < 5.0
    assert (await ask(local, "t_add", a=1)).text == "2"


async def test_a_server_that_dies_is_started_again(local):
    first = int((await ask(local, "t_pid")).text)
    died = await ask(local, "t_die")
    assert (died.error, died.text) == (
        "ToolUnavailable",
        "ToolUnavailable: the MCP server went away while it was asked",
    )
    second = int((await ask(local, "t_pid")).text)
    assert second != first
    await gone(first)


async def test_retries_reach_the_new_server(monkeypatch):
    monkeypatch.setattr(retry, "FIRST_WAIT_S", 0.01)
    policy = ToolPolicy(timeout_s=20.0, retries=1)
    toolbox = Toolbox(await rough(policy=policy).tools())
    waiting = asyncio.create_task(ask(toolbox, "wait", seconds=2.0))
    await asyncio.sleep(0.1)
    os.kill(int((await ask(toolbox, "pid")).text), 9)
    assert (await waiting).text == "rested"
    assert toolbox.accounts["wait"].retries == 1
    await toolbox.aclose()


async def test_a_long_answer_is_cut(local):
    long = await ask(local, "t_say", length=10_000_000)
    assert long.truncated
    assert len(long.text) < 300_000


@pytest.mark.parametrize(
    "text", ["a line without end ", '{"jsonrpc":"2.0","method":"notifications/message","params":{}}\n', "no JSON\n"]
)
async def test_a_server_that_floods_is_cut_off(local, text, monkeypatch):
    monkeypatch.setattr("icrl.runtime.tools.mcp_stdio.MAX_UNASKED", 200)
    pid = int((await ask(local, "t_pid")).text)
    assert (await ask(local, "t_flood", text=text)).error == "ToolUnavailable"
    assert (await ask(local, "t_add", a=1)).text == "2"
    await gone(pid)


async def test_a_server_that_floods_its_log_is_not_heard(local):
    gc.collect()  # a long session's garbage takes half a second, now or later
    spent = time.process_time()
    assert (await ask(local, "t_flood", text="warning ", fd=2, deadline_s=0.5)).error == "ToolTimeout"
    assert (await ask(local, "t_add", a=1)).text == "2"
    assert time.process_time() - spent < 0.4


async def test_a_server_gets_no_secrets_of_ours(monkeypatch):
    monkeypatch.setenv("ICRL_SECRET_KEY", "hush")
    async with rough(env={"GIVEN": "yes"}) as server:
        toolbox = Toolbox(await server.tools())
        assert (await ask(toolbox, "variable", name="ICRL_SECRET_KEY")).text == "(unset)"
        assert (await ask(toolbox, "variable", name="GIVEN")).text == "yes"
        assert (await ask(toolbox, "variable", name="PATH")).text == os.environ["PATH"]


async def test_closing_ends_the_server_and_a_later_call_starts_another():
    server = rough()
    toolbox = Toolbox(await server.tools())
    pid = int((await ask(toolbox, "pid")).text)
    busy = asyncio.create_task(ask(toolbox, "wait", seconds=60))
    await asyncio.sleep(0.05)
    started = time.monotonic()
    await toolbox.aclose()
    assert not alive(pid)
    assert time.monotonic() - started < 6.0
    assert (await busy).error == "ToolUnavailable"
    assert int((await ask(toolbox, "pid")).text) != pid
    await server.aclose()
    await server.aclose()
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_server_that_ignores_its_end_is_killed_with_its_children():
    toolbox = Toolbox(await rough().tools())
    pid = int((await ask(toolbox, "pid")).text)
    child = int((await ask(toolbox, "ignore_the_end")).text)
    await toolbox.aclose()
    assert not alive(pid)
    await gone(child)


async def test_cancelling_while_a_server_starts_leaves_nothing():
    server = rough()
    opening = asyncio.create_task(server.tools())
    await asyncio.sleep(0.01)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    await server.aclose()
    assert asyncio.all_tasks() == {asyncio.current_task()}


def test_a_server_serves_two_event_loops():
    server = rough()

    async def add() -> str:
        toolbox = Toolbox(await server.tools())
        text = (await ask(toolbox, "add", a=1)).text
        await toolbox.aclose()
        return text

    assert [asyncio.run(add()) for _ in range(2)] == ["2", "2"]


# ---- what cannot be opened


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        ("/no/such/server", "No such file"),
        ("", "cannot connect"),
        (f"{sys.executable} -c \"import sys; sys.exit('no key given')\"", "it wrote: no key given"),
        (f"{sys.executable} -c \"print('hello')\"", "cannot connect"),
        ("http://127.0.0.1:9/mcp", "cannot connect"),
    ],
)
async def test_what_cannot_be_opened_says_why(spec, problem):
    with pytest.raises(ConfigError, match=f"tools: MCP server .*{problem}"):
        await open_mcp(spec)
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_silent_server_is_given_up():
    server = McpServer.stdio("sleep", ["600"], connect_timeout_s=0.2)
    with pytest.raises(ConfigError, match=r"within 0\.2 s"):
        await server.tools()
    await server.aclose()
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_the_model_does_not_read_how_a_server_is_started(caplog):
    server = rough()
    (add, *_) = await server.tools()
    await server.aclose()
    server._connect = McpServer.stdio("/no/such/server", ["--token=hush"])._connect
    result = await ask(Toolbox([add]), "add", a=1)
    assert result.text == "ToolUnavailable: the MCP server cannot be reached"
    assert "No such file" in caplog.text


async def test_without_the_package_the_extra_is_named(monkeypatch):
    def missing(*packages: str, extra: str) -> None:
        raise MissingExtraError(packages[0], extra=extra)

    monkeypatch.setattr(module, "require", missing)
    with pytest.raises(MissingExtraError, match=r"icrl\[mcp\]"):
        await open_mcp("http://127.0.0.1:9/mcp")


def test_an_address_is_shown_without_what_it_hides():
    assert repr(McpServer.http("https://me:hush@host.example:8443/mcp?key=hush")) == (
        "<MCP server https://host.example:8443/mcp>"
    )


# ---- streamable HTTP


class Remote:
    """A server process of its own, on a port that it keeps when it is started again."""

    def __init__(self) -> None:
        self.port = 0
        self.start()

    def start(self) -> None:
        command = [sys.executable, str(SERVER), "http", str(self.port)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.port = int(self.process.stdout.readline())

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/mcp"


@pytest.fixture(scope="module")
def remote() -> Iterator[Remote]:
    server = Remote()
    yield server
    server.kill()


async def test_a_server_at_an_address_answers_hangs_and_floods_likewise(remote):
    toolbox = Toolbox(await open_mcp(remote.url, policy=PATIENT))
    assert (await ask(toolbox, "add", a=2, b=3)).text == "5"
    assert (await ask(toolbox, "add", a="x")).error == "ToolError"
    assert (await ask(toolbox, "wait", seconds=60, deadline_s=0.2)).error == "ToolTimeout"
    assert (await ask(toolbox, "flood", length=10_000_000)).truncated
    assert (await ask(toolbox, "flood", length=40_000_000)).error in ("ToolError", "ToolUnavailable")
    assert (await ask(toolbox, "add", a=1)).text == "2"
    await toolbox.aclose()
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_server_that_was_away_is_found_again(remote):
    toolbox = Toolbox(await open_mcp(remote.url, policy=PATIENT))
    assert (await ask(toolbox, "add", a=1)).text == "2"
    await asyncio.to_thread(remote.kill)
    assert (await ask(toolbox, "add", a=1)).error == "ToolUnavailable"
    await asyncio.to_thread(remote.start)
    assert (await ask(toolbox, "add", a=1)).text == "2"
    await toolbox.aclose()
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_headers_reach_the_server_and_other_answers_are_failures():
    seen: list[str | None] = []

    async def handle(request: web.Request) -> web.Response:
        seen.append(request.headers.get("Authorization"))
        return web.Response(status=403, text="no")

    app = web.Application()
    app.router.add_route("*", "/mcp", handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}/mcp"
    server = McpServer.http(url, headers={"Authorization": "Bearer abc"})
    with pytest.raises(ConfigError, match="cannot connect"):
        await server.tools()
    await server.aclose()
    await runner.cleanup()
    assert set(seen) == {"Bearer abc"}
