from __future__ import annotations

import asyncio
import os
import signal
import sys

import pytest
from processes import ServerProcess, alive
from sglang_places import fake_environment

from icrl.commands import sglang as module
from icrl.commands.sglang import SGLangCommand, main
from icrl.errors import ConfigError, MissingExtraError
from icrl.tiny import BASE_DIR


@pytest.fixture
def environment(tmp_path, monkeypatch):
    monkeypatch.setenv("ICRL_SGLANG_VENV", str(fake_environment(tmp_path / "env")))
    monkeypatch.delenv("ICRL_ENGINE_KEY", raising=False)


async def command(*arguments, mode="good"):
    process = await asyncio.create_subprocess_exec(
        *("sh", "-c", 'exec "$@" >&2', "sh", sys.executable, "-u", "-m", "icrl", "sglang", "--cpu", *arguments),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
        env={**os.environ, "FAKE_SGLANG": mode, "COLUMNS": "40"},
    )
    return ServerProcess(process)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_it_tells_where_and_what_next_and_a_signal_ends_the_whole_tree(environment, number, tmp_path):
    log = tmp_path / "server.log"
    server = await command("--port", "0", "--log", str(log), "--", "--page-size", "1", mode="children")
    address = (await server.said(r"^ready: (http://127\.0\.0\.1:\d+) "))[1]
    await server.said("^Ctrl-C ends it")
    below = server.children()
    assert len(below) == 4
    server.signal(number)
    assert await server.ended() == 0
    assert alive(below) == []
    assert f"  icrl train --engine {address}" in server.lines
    assert f"  icrl serve {address}" in server.lines
    assert f"'--model-path', '{BASE_DIR}'" in log.read_text()
    assert "'--page-size', '1'" in log.read_text()


async def test_a_signal_ends_it_before_it_is_ready(environment):
    server = await command("--port", "0", mode="never")
    await server.said("^starting SGLang with")
    async with asyncio.timeout(20):
        while len(below := server.children()) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    server.signal(signal.SIGINT)
    assert await server.ended() == 0
    assert alive(below) == []
    assert not any(line.startswith("ready") for line in server.lines)


@pytest.mark.parametrize(("mode", "problem"), [("fails", "ended with code 3"), ("dies", "ended with code 7")])
async def test_a_server_that_ends_by_itself_ends_it_with_an_error(environment, mode, problem):
    server = await command("--port", "0", mode=mode)
    assert await server.ended() == 2
    said = "\n".join(server.lines)
    assert "error: http://127.0.0.1:" in said
    assert problem in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("argv", "problem"),
    [
        (["--prot", "1"], r"unknown option --prot. Did you mean --port\?"),
        (["--install"], r"install: makes the environment for CPUs.*pip install 'icrl\[sglang\]'"),
        (["--cpu", "--tp", "2"], "tp: a CPU runs a model in one process"),
        (["--port", "-1"], "port: must be from 0 to 65535"),
        (["./nowhere", "--cpu"], "holds no model"),
    ],
    ids=" ".join,
)
def test_mistakes_are_found_before_anything_starts(environment, argv, problem):
    with pytest.raises(ConfigError, match=problem):
        main(argv)


def test_without_the_environment_it_says_how_to_make_it(monkeypatch, tmp_path):
    monkeypatch.setenv("ICRL_SGLANG_VENV", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="run: icrl sglang --cpu --install"):
        main(["--cpu"])


def test_without_sglang_and_without_cpu_both_ways_are_named(environment, capsys):
    with pytest.raises(MissingExtraError, match=r"pip install 'icrl\[sglang\]'"):
        main([])
    assert capsys.readouterr().err == "without a GPU: icrl sglang --cpu --install, then: icrl sglang --cpu\n"


def test_install_makes_the_environment_and_ends(monkeypatch, capsys):
    monkeypatch.setattr(module, "install", lambda *, say: say("installed: somewhere"))
    main(["--cpu", "--install"])
    assert capsys.readouterr().out == "installed: somewhere\nstart a server: icrl sglang --cpu\n"


def test_a_run_directory_and_a_key_reach_the_server(monkeypatch, tmp_path):
    started = []

    async def serve(config, console):
        started.append(config)

    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "model").symlink_to(BASE_DIR)
    monkeypatch.setenv("ICRL_ENGINE_KEY", "s3cret")
    monkeypatch.setattr(module, "_serve", serve)
    main([str(tmp_path / "first"), "--host", "0.0.0.0", "--no-deterministic", "--", "--mem-fraction-static", "0.5"])
    (config,) = started
    assert config.model == str(tmp_path / "first" / "model")
    assert (config.port, config.host, config.api_key) == (30_000, "0.0.0.0", "s3cret")
    assert (config.deterministic, config.extra) == (False, ("--mem-fraction-static", "0.5"))
    assert SGLangCommand(cpu=True).launched("m").extra == ()
