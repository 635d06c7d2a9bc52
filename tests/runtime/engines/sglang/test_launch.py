from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import aiohttp
import pytest
import yaml
from processes import alive, command_lines, stat_of
from sglang_places import fake_environment

from icrl.errors import ConfigError, EngineError, MissingExtraError
from icrl.runtime.engines.sglang import launch
from icrl.runtime.engines.sglang.flags import LaunchConfig, command, secrets
from icrl.runtime.engines.sglang.launch import running, running_server

QUICK = {"cpu": True, "startup_s": 20.0, "grace_s": 0.3}


@pytest.fixture(autouse=True)
def environment(tmp_path, monkeypatch):
    monkeypatch.setenv("ICRL_SGLANG_VENV", str(fake_environment(tmp_path / "env")))
    monkeypatch.delenv("FAKE_SGLANG", raising=False)


def below(root: int) -> set[tuple[int, str]]:
    """A process and everything under it, with when each began."""
    stats = {int(name): stat_of(int(name)) for name in os.listdir("/proc") if name.isdecimal()}
    found = {root}
    while more := {pid for pid, stat in stats.items() if stat and int(stat[1]) in found} - found:
        found |= more
    return {(pid, stats[pid][19]) for pid in found}


async def gone(processes: set[tuple[int, str]]) -> None:
    async with asyncio.timeout(20):
        while alive(processes):  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def sampled(address: str, **headers: str) -> dict:
    async with aiohttp.request("POST", f"{address}/generate", json={}, headers=headers) as reply:
        assert reply.status == 200, await reply.text()
        return await reply.json(content_type=None)


async def test_a_server_runs_while_the_block_does():
    async with running(LaunchConfig(model="m", extra=("--page-size", "1"), **QUICK)) as server:
        reply = await sampled(server.address)
        processes = below(server.pid)
        log = server.log
        assert len(processes) == 2
    argv = " ".join(reply["argv"])
    assert "-m sglang.launch_server --model-path m --host 127.0.0.1" in argv
    assert argv.endswith("--enable-metrics --sleep-on-idle --page-size 1")
    assert reply["variables"]["SGLANG_USE_CPU_ENGINE"] == "1"
    assert reply["variables"]["OMP_NUM_THREADS"] == os.environ.get("OMP_NUM_THREADS", "1")
    assert (Path(reply["variables"]["PYTHONPATH"]) / "sitecustomize.py").is_file()
    assert not alive(processes)
    assert not log.exists()


async def test_ports_are_free_ones_and_two_servers_do_not_meet():
    async with running_server("m", **QUICK) as one, running_server("m", **QUICK) as other:
        assert one != other


async def test_a_port_where_another_server_listens_is_refused():
    async with running(LaunchConfig(model="m", **QUICK)) as server:
        port = int(server.address.rpartition(":")[2])
        before = below(os.getpid())
        with pytest.raises(ConfigError, match=f"port, host: {port} on 127.0.0.1 cannot be listened on"):
            async with running_server("m", port=port, **QUICK):
                pytest.fail("it is another server")
        assert below(os.getpid()) == before


async def test_a_host_of_another_machine_is_refused():
    with pytest.raises(ConfigError, match=r"port, host: 0 on 192.0.2.1 cannot be listened on"):
        async with running_server("m", host="192.0.2.1", api_key="k", **QUICK):
            pytest.fail("it is not ours")


@pytest.mark.parametrize(
    ("host", "reachable"), [("0.0.0.0", "127.0.0.1"), ("::", "[::1]"), ("::1", "[::1]"), ("localhost", "localhost")]
)
def test_hosts_are_reached_as_clients_write_them(host, reachable):
    assert launch._reachable(host) == reachable


@pytest.mark.skipif(not Path("/proc/net/if_inet6").exists(), reason="there is no IPv6")
def test_a_free_port_is_found_on_ipv6():
    assert launch._port(LaunchConfig(model="m", host="::1")) > 0


async def test_a_log_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"log: .*/missing/server.log cannot be written \(No such file"):
        async with running_server("m", log=tmp_path / "missing" / "server.log", **QUICK):
            pytest.fail("it has no log")


async def test_only_the_end_of_a_long_log_is_read(tmp_path):
    log = tmp_path / "server.log"
    log.write_bytes(b"first\n" + b"x" * 100_000 + b"\n")
    async with running(LaunchConfig(model="m", log=log, **QUICK)) as server:
        tail = await server.tail()
    assert "server_args" in tail
    assert "first" not in tail


async def test_a_server_that_fails_at_its_start_is_quoted(monkeypatch):
    monkeypatch.setenv("FAKE_SGLANG", "fails")
    with pytest.raises(EngineError, match=r"ended with code 3; the end of its log:\n(?s:.*)no such model"):
        async with running_server("m", **QUICK):
            pytest.fail("it did not start")


async def test_a_server_that_is_never_ready_is_ended_and_its_last_answer_is_told(monkeypatch):
    monkeypatch.setenv("FAKE_SGLANG", "never")
    with pytest.raises(EngineError, match=r"was not ready after 6 s \(/health: 503\); the end of its log"):
        async with running_server("m", cpu=True, startup_s=6, grace_s=0.3):
            pytest.fail("it did not get ready")


async def test_the_end_of_a_server_is_seen(monkeypatch):
    monkeypatch.setenv("FAKE_SGLANG", "dies")
    async with running(LaunchConfig(model="m", **QUICK)) as server, asyncio.timeout(20):
        assert await server.ended() == 7
        assert "server_args" in await server.tail()


@pytest.mark.parametrize("mode", ["children", "stubborn"])
async def test_whatever_it_started_ends_with_it(monkeypatch, mode):
    monkeypatch.setenv("FAKE_SGLANG", mode)
    async with running(LaunchConfig(model="m", **QUICK)) as server:
        processes = below(server.pid)
        assert len(processes) == 4  # the guard, the server, its child, and one that lost its parent
    assert not alive(processes)


async def test_cancellation_ends_the_server_before_it_is_ready(monkeypatch):
    monkeypatch.setenv("FAKE_SGLANG", "never")
    task = asyncio.create_task(running_server("m", **QUICK).__aenter__())
    async with asyncio.timeout(20):
        while len(processes := below(os.getpid())) < 3:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert alive(processes) == [os.getpid()]


STARTER = """
import asyncio
from icrl.runtime.engines.sglang.launch import LaunchConfig, running
async def main():
    async with running(LaunchConfig(model="m", cpu=True, grace_s=0.3)) as server:
        print(server.pid, flush=True)
        await asyncio.sleep(600)
asyncio.run(main())
"""


@pytest.mark.parametrize("victim", ["us", "guard"])
async def test_the_server_does_not_survive_a_kill_of_us_or_of_its_guard(monkeypatch, tmp_path, victim):
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # who is killed cleans nothing up
    monkeypatch.setenv("FAKE_SGLANG", "children" if victim == "us" else "good")
    starter = await asyncio.create_subprocess_exec(sys.executable, "-c", STARTER, stdout=asyncio.subprocess.PIPE)
    async with asyncio.timeout(30):
        guard = int(await starter.stdout.readline())
    processes = below(starter.pid)
    os.kill(starter.pid if victim == "us" else guard, signal.SIGKILL)
    if victim == "guard":
        await gone({one for one in processes if one[0] != starter.pid})
        starter.kill()
    await starter.wait()
    await gone(processes)


async def test_a_key_is_wanted_and_stands_in_no_command_line_and_in_no_error(monkeypatch):
    async with running(LaunchConfig(model="m", api_key="s3cret", **QUICK)) as server:
        assert not any("s3cret" in line for line in command_lines(below(server.pid)))
        assert "s3cret" not in await server.tail()
        assert server.log.stat().st_mode & 0o077 == 0
        assert [path.name for path in server.log.parent.iterdir()] == ["server.log"]
        assert (await sampled(server.address, Authorization="Bearer s3cret"))["output_ids"] == [1]
        with pytest.raises(AssertionError, match="Unauthorized"):
            await sampled(server.address)


async def test_a_log_of_choice_stays_and_grows(tmp_path):
    log = tmp_path / "server.log"
    for _ in range(2):
        async with running_server("m", log=log, **QUICK):
            pass
    assert log.read_text().count("server_args") == 2


async def test_without_sglang_the_extra_is_named():
    with pytest.raises(MissingExtraError, match=r"pip install 'icrl\[sglang\]'"):
        async with running_server("m"):
            pytest.fail("there is no SGLang")


async def test_with_sglang_our_own_interpreter_runs_it(monkeypatch, tmp_path):
    monkeypatch.setattr(launch, "version", lambda package: "0.5.23")
    (tmp_path / "sglang").mkdir()
    (tmp_path / "sglang" / "launch_server.py").write_text("import sys; print(sys.argv); sys.exit(5)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(EngineError, match=r"code 5; (?s:.*)'--tp-size', '2', .*'--enable-deterministic-inference'"):
        async with running_server("m", tp=2, startup_s=20.0):
            pytest.fail("it ended")


async def test_the_file_with_the_key_is_for_its_owner(tmp_path):
    path = await secrets(LaunchConfig(model="m", api_key='a "key": 1'), tmp_path)
    assert path.stat().st_mode & 0o077 == 0
    assert yaml.safe_load(path.read_text()) == {"api-key": 'a "key": 1'}
    assert await secrets(LaunchConfig(model="m"), tmp_path) is None


def words(**options: object) -> str:
    return " ".join(command(LaunchConfig(model="m", **options), 1, python="p"))


def test_a_cpu_gets_what_it_can_do_and_a_pool_that_fits():
    assert words(cpu=True) == (
        "p -m sglang.launch_server --model-path m --host 127.0.0.1 --port 1 --dtype float32 --max-total-tokens 65536"
        " --max-running-requests 128 --device cpu --attention-backend torch_native --enable-metrics --sleep-on-idle"
    )


def test_a_gpu_decides_itself_what_is_not_said():
    assert words(tp=4, deterministic=False) == (
        "p -m sglang.launch_server --model-path m --host 127.0.0.1 --port 1 --dtype auto --tp-size 4"
        " --enable-metrics --sleep-on-idle"
    )
    assert "--max-total-tokens 9 --max-running-requests 3" in words(max_total_tokens=9, max_running=3)


def test_adapters_are_taken_where_they_have_a_rank():
    lora = "--sleep-on-idle --enable-lora --max-lora-rank 8 --lora-target-modules q_proj v_proj"
    assert words(lora_rank=8, lora_targets=("q_proj", "v_proj"), deterministic=False).endswith(lora)
    assert words(lora_rank=8, cpu=True).endswith("o_proj --lora-backend torch_native")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"port": 70_000}, "port: must be from 0 to 65535, not 70000"),
        ({"tp": 0}, "tp: must be >= 1, not 0"),
        ({"max_running": 0}, "max_running: must be >= 1, not 0"),
        ({"startup_s": -1.0}, "startup_s: must be >= 0, not -1"),
        ({"cpu": True, "tp": 2}, "tp: a CPU runs a model in one process, not 2"),
        ({"host": "0.0.0.0"}, "host: 0.0.0.0 serves other machines"),
        ({"api_key": "k", "extra": ("--config", "mine.yaml")}, "extra: the key is given"),
    ],
    ids=str,
)
def test_settings_are_checked(options, problem):
    with pytest.raises(ConfigError, match=problem):
        LaunchConfig(model="m", **options)
