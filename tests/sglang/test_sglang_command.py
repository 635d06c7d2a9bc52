"""`icrl sglang --cpu` with a real server: it starts, samples, and leaves nothing."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from contextlib import asynccontextmanager

import aiohttp
import pytest
from processes import ServerProcess, alive, command_lines, stat_of

from icrl.runtime.engines.sglang.environment import VERSION

pytestmark = pytest.mark.sglang

PROMPT = [5, 6, 7, 8]


@asynccontextmanager
async def commanded(*arguments, **variables):
    """`icrl sglang` as a person starts it; its output is read as it comes."""
    process = await asyncio.create_subprocess_exec(
        *("sh", "-c", 'exec "$@" >&2', "sh", sys.executable, "-u", "-m", "icrl", "sglang", *arguments),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
        env={**os.environ, "COLUMNS": "200", **variables},
    )
    server = ServerProcess(process)
    try:
        yield server
    finally:
        if process.returncode is None:
            process.kill()
            await server.ended()


async def ask(session, path, payload=None):
    request = session.get(path) if payload is None else session.post(path, json=payload)
    async with request as reply:
        return reply.status, await reply.json(content_type=None) if reply.status == 200 else await reply.text()


async def test_it_starts_samples_and_ctrl_c_ends_the_whole_tree(sglang_environment):
    async with commanded("--cpu", "--port", "0", ICRL_ENGINE_KEY="s3cret") as server:
        address = (await server.said(r"^ready: (\S+)", within_s=600))[1]
        await server.said(f"^  icrl serve {re.escape(address)}$")
        below = server.children()
        names = command_lines(below)
        assert any("sglang.launch_server" in name for name in names)
        assert any("scheduler" in name for name in names)
        assert not any("s3cret" in name for name in names)
        async with aiohttp.ClientSession(address) as session:
            status, _ = await ask(session, "/generate", {"input_ids": PROMPT})
            assert status == 401
        async with aiohttp.ClientSession(address, headers={"Authorization": "Bearer s3cret"}) as session:
            parameters = {"max_new_tokens": 3, "temperature": 0, "ignore_eos": True}
            status, reply = await ask(session, "/generate", {"input_ids": PROMPT, "sampling_params": parameters})
            assert (status, len(reply["output_ids"])) == (200, 3)
            assert (await ask(session, "/server_info"))[1]["version"] == VERSION
            async with session.get("/metrics") as metrics:
                assert "sglang" in await metrics.text()
        server.signal(signal.SIGINT)
        assert await server.ended(within_s=60) == 0
        assert "ending" in server.lines
        assert alive(below) == []


async def test_a_kill_of_the_server_ends_the_command_with_the_end_of_the_log(changing_server):
    """The same guard as the command's: what is below a killed server does not outlive it."""
    root = changing_server.server.pid
    parents = {int(p): stat_of(int(p)) for p in os.listdir("/proc") if p.isdecimal()}
    (main,) = [pid for pid, stat in parents.items() if stat and int(stat[1]) == root]
    below = {(pid, stat[19]) for pid, stat in parents.items() if stat and int(stat[1]) in (root, main)}
    assert len(below) >= 3
    changing_server.kill()
    async with asyncio.timeout(60):
        while alive({*below, (root, parents[root][19])}):  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    await asyncio.to_thread(changing_server.stop)
    await asyncio.to_thread(changing_server.start)
    async with aiohttp.ClientSession(changing_server.address) as session:
        assert (await ask(session, "/health"))[0] == 200


async def test_flags_of_the_servers_own_reach_it_and_a_wrong_one_is_quoted(sglang_environment):
    async with commanded("--cpu", "--port", "0", "--", "--no-such-flag") as server:
        assert await server.ended(within_s=120) == 2
        said = "\n".join(server.lines)
        assert "ended with code 2" in said
        assert "unrecognized arguments: --no-such-flag" in said
