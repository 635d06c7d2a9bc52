"""SandboxFusion behind the sandbox's interface, against a service that behaves well or badly."""

import asyncio
import json
import time
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from icrl.errors import ConfigError, SandboxError
from icrl.runtime.sandbox.fusion import MAX_REPLY_BYTES, FusionExecutor
from icrl.runtime.tools.python import PythonTool


def reply(status="Success", message="", /, **ran):
    ran = {"status": "Finished", "execution_time": 0.01, "return_code": 0, "stdout": "", "stderr": "", **ran}
    return {"status": status, "message": message, "compile_result": None, "run_result": ran, "files": {}}


@asynccontextmanager
async def service(answer, **settings):
    """A service whose handler is `answer`; the executor for it; and the requests that it got."""
    asked = []

    async def handle(request):
        asked.append(await request.json())
        return await answer(request)

    app = web.Application()
    app.router.add_post("/run_code", handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    executor = FusionExecutor(f"http://127.0.0.1:{runner.addresses[0][1]}", **settings)
    try:
        yield executor, asked
    finally:
        await executor.aclose()
        await runner.cleanup()


def always(body, *, status=200):
    async def answer(request):
        return web.Response(text=body if isinstance(body, str) else json.dumps(body), status=status)

    return answer


async def run(answer, code="print(1)", **settings):
    async with service(answer, **settings) as (executor, _):
        return await executor.run(code)


async def test_a_program_is_sent_with_its_bounds():
    async with service(always(reply(stdout="3\n", stderr="careful\n"))) as (executor, asked):
        result = await executor.run("print(3)", timeout_s=2.5, memory_mb=64, stdin="in\ud800")
    assert (result.status, result.stdout, result.value, result.error) == ("ok", "3\ncareful\n", None, None)
    assert result.wall_s > 0
    assert asked == [
        {
            "code": "print(3)",
            "language": "python",
            "run_timeout": 2.5,
            "compile_timeout": 2.5,
            "memory_limit_MB": 64,
            "stdin": "in?",
            "files": {},
            "fetch_files": [],
        }
    ]


TRACE = "Traceback (most recent call last):\n  File ...\n"


@pytest.mark.parametrize(
    ("ran", "status", "stdout", "error"),
    [
        ({"return_code": 1, "stderr": f"{TRACE}ValueError: no\n"}, "error", "p\n", f"{TRACE}ValueError: no"),
        ({"return_code": 1, "stderr": f"{TRACE}MemoryError\n"}, "memory", "p\n", f"{TRACE}MemoryError"),
        ({"return_code": 3}, "error", "p\n", "the program ended with status 3"),
        ({"return_code": 3, "stderr": None}, "error", "p\n", "the program ended with status 3"),
        ({"return_code": None}, "error", "p\n", "the program ended with status None"),
        ({"return_code": -11}, "crashed", "p\n", "the interpreter was ended by signal 11"),
        ({"return_code": 137, "stderr": "Killed\n"}, "crashed", "p\nKilled\n", "the interpreter was ended by signal 9"),
        (
            {"status": "TimeLimitExceeded", "return_code": None, "stderr": "e"},
            "timeout",
            "p\ne",
            "stopped: the program was not done after 5 s",
        ),
    ],
)
async def test_failures_of_a_program_are_results(ran, status, stdout, error):
    result = await run(always(reply("Failed", stdout="p\n", **ran)))
    assert (result.status, result.stdout, result.error) == (status, stdout, error)


async def test_output_is_cut_at_the_cap():
    result = await run(always(reply(stdout="é" * 300_000)))
    assert (result.status, result.truncated, len(result.stdout.encode())) == ("ok", True, 200_000)
    result = await run(always(reply("Failed", return_code=1, stderr="e" * 300_000)))
    assert len(result.error) < 9_000


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (always("it broke", status=500), "answered with status 500: it broke"),
        (always("", status=302), "answered with status 302"),
        (always("<html>"), "not of SandboxFusion"),
        (always("[" * 100_000), "not of SandboxFusion"),
        (always({"status": "Success"}), "no reason given"),
        (always({"status": "Odd", "run_result": None}), "not of SandboxFusion"),
        (always(reply("SandboxError", "no space left")), "could not run the program: no space left"),
        (
            always(reply("SandboxError", "", status="Error", stderr="cannot fork")),
            "could not run the program: cannot fork",
        ),
    ],
)
async def test_failures_of_the_service_are_sandbox_errors(answer, told):
    with pytest.raises(SandboxError, match=r"http://127\.0\.0\.1:") as caught:
        await run(answer)
    assert told in str(caught.value)
    assert len(str(caught.value)) < 600


async def test_a_service_that_is_not_there():
    executor = FusionExecutor("http://127.0.0.1:1")
    with pytest.raises(SandboxError, match=r"http://127\.0\.0\.1:1/run_code: "):
        await executor.run("1")
    await executor.aclose()


async def drip(request):
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(b" ")
        await asyncio.sleep(0.01)


async def hang(request):
    await asyncio.sleep(60)


@pytest.mark.parametrize("answer", [drip, hang])
async def test_the_deadline_covers_the_whole_answer(answer):
    began = time.monotonic()
    async with service(answer, margin_s=0.1) as (executor, _):
        with pytest.raises(SandboxError, match=r"no answer within 0\.2 s"):
            await executor.run("1", timeout_s=0.1)
    assert time.monotonic() - began < 10


async def test_an_endless_answer_is_not_read_to_its_end():
    sent = 0

    async def flood(request):
        nonlocal sent
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b" " * 2**18)
            sent += 2**18

    with pytest.raises(SandboxError, match=f"more than {MAX_REPLY_BYTES} bytes"):
        await run(flood)
    assert sent < 4 * MAX_REPLY_BYTES


async def test_redirects_are_not_followed():
    async def elsewhere(request):
        raise web.HTTPFound("/run_code?again")

    async with service(elsewhere) as (executor, asked):
        with pytest.raises(SandboxError, match="status 302"):
            await executor.run("1")
    assert len(asked) == 1


async def test_proxies_of_the_environment_are_not_used(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert (await run(always(reply(stdout="x")))).stdout == "x"


async def test_cancelling_and_closing_leave_nothing_behind():
    before = asyncio.all_tasks()
    async with service(hang) as (executor, asked):
        running = [asyncio.create_task(executor.run("1")) for _ in range(2)]
        while len(asked) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        running[0].cancel()
        with pytest.raises(asyncio.CancelledError):
            await running[0]
        await executor.aclose()
        with pytest.raises(SandboxError):
            await running[1]
        left = {task.get_coro().cr_code.co_filename for task in asyncio.all_tasks() - before}
    assert all(name.endswith("web_protocol.py") for name in left), left  # the service's own


async def test_programs_beyond_the_limit_wait_here():
    at_once = most = 0

    async def count(request):
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0.02)
        at_once -= 1
        return web.json_response(reply())

    async with service(count, max_concurrency=2) as (executor, asked):
        results = await asyncio.gather(*(executor.run(str(number)) for number in range(6)))
    assert ([result.status for result in results], len(asked), most) == (["ok"] * 6, 6, 2)


async def test_it_opens_again_after_it_was_closed():
    async with service(always(reply(stdout="x"))) as (executor, _):
        for _ in range(2):
            assert (await executor.run("1")).stdout == "x"
            await executor.aclose()


async def test_the_python_tool_uses_it():
    async with service(always(reply(stdout="6\n"))) as (executor, _):
        tool = PythonTool(executor)
        assert await tool({"code": "print(6)"}) == "6"
        assert executor.url in tool.fingerprint


async def test_what_cannot_be_is_refused():
    for url in ("", "127.0.0.1:8080", "ftp://a", "http://"):
        with pytest.raises(ConfigError, match="url: "):
            FusionExecutor(url)
    with pytest.raises(ConfigError, match="margin_s"):
        FusionExecutor("http://a", margin_s=0)
    executor = FusionExecutor("http://me:secret@a:1/box/run_code", fingerprint="py3.11")
    assert (executor.url, executor.fingerprint) == ("http://a:1/box/run_code", "py3.11")
    with pytest.raises(ConfigError, match="keeps no variables"):
        executor.session()
    assert (await executor.run("#" * 70_000)).status == "denied"
