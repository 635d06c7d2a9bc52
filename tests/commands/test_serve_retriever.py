from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
from dataclasses import replace

import pytest

from icrl.commands.serve_retriever import ServeRetrieverCommand, main, serving
from icrl.errors import ConfigError, DataError, ToolError
from icrl.runtime.tools.index import Bm25Index, build_index
from icrl.runtime.tools.retrievers.opening import open_retriever
from icrl.runtime.tools.retrievers.remote import HttpRetriever


@pytest.fixture
def directory(tmp_path):
    texts = [f"The code of name{i} is {i * 7}." for i in range(50)]
    (tmp_path / "c.jsonl").write_text("\n".join(json.dumps({"title": "T", "text": text}) for text in texts))
    build_index(tmp_path / "c.jsonl", tmp_path / "index", show_progress=False)
    return tmp_path / "index"


@pytest.fixture
def expected(directory):
    return Bm25Index.open(directory).search(["code of name3", "name7"], 2)


@pytest.mark.parametrize("processes", [None, 1])
async def test_a_client_finds_what_the_index_holds(directory, expected, processes):
    command = ServeRetrieverCommand(index=directory, port=0, processes=processes)
    async with serving(command) as address:
        client = open_retriever(address)
        assert await client.search(["code of name3", "name7"], 2) == expected
        await client.aclose()
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_key_from_the_environment_is_asked_for(directory, monkeypatch):
    monkeypatch.setenv("ICRL_API_KEY", "right")
    async with serving(ServeRetrieverCommand(index=directory, port=0)) as address:
        monkeypatch.setenv("ICRL_RETRIEVER_KEY", "right")
        good, bad = open_retriever(address), HttpRetriever(address)
        assert await good.search(["name7"], 1)
        with pytest.raises(ToolError, match="status 401"):
            await bad.search(["name7"], 1)
        for client in (good, bad):
            await client.aclose()


async def test_other_machines_need_a_key(directory, monkeypatch):
    monkeypatch.delenv("ICRL_API_KEY", raising=False)
    with pytest.raises(ConfigError, match=r"host: 0\.0\.0\.0 serves other machines"):
        ServeRetrieverCommand(index=directory, host="0.0.0.0")
    assert ServeRetrieverCommand(index=directory, host="0.0.0.0", insecure=True).insecure
    monkeypatch.setenv("ICRL_API_KEY", "key")
    assert ServeRetrieverCommand(index=directory, host="0.0.0.0").access().api_keys() == ("key",)


async def test_what_cannot_be_served_is_said(directory, tmp_path):
    with pytest.raises(DataError, match="is not a search index"):
        async with serving(ServeRetrieverCommand(index=tmp_path, port=0)):
            pass
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        command = ServeRetrieverCommand(index=directory, port=taken.getsockname()[1])
        with pytest.raises(ConfigError, match="port: cannot listen"):
            async with serving(command):
                pass


@pytest.mark.parametrize("wrong", [{"timeout_s": 0.0}, {"max_running": 0}, {"port": 70_000}])
def test_settings_are_checked(directory, wrong):
    with pytest.raises(ConfigError, match=f"{next(iter(wrong))}: must be"):
        replace(ServeRetrieverCommand(index=directory), **wrong)
    with pytest.raises(ConfigError, match="unknown option --prot"):
        main([str(directory), "--prot", "1"])


def test_a_signal_ends_it_cleanly(directory):
    command = [sys.executable, "-m", "icrl", "serve-retriever", str(directory), "--port", "0", "--processes", "1"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as server:
        line = server.stderr.readline()
        (address,) = re.findall(r"ready: (http://127\.0\.0\.1:\d+)/retrieve", line)

        async def ask() -> int:
            client = HttpRetriever(address)
            found = await client.search(["name7"], 1)
            await client.aclose()
            return len(found[0])

        assert asyncio.run(ask()) == 1
        server.send_signal(signal.SIGTERM)
        assert server.wait(20) == 0
        assert server.stderr.read() == ""
