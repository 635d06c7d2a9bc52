"""Commands with an address in the place of a model; the servers live in a loop of another thread."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from contextlib import contextmanager

import pytest
from chat_endpoint import chat_endpoint

from icrl.commands import eval as eval_command
from icrl.commands import run as run_command
from icrl.commands import serve as serve_command
from icrl.errors import ConfigError
from icrl.runtime.engines.pool import EnginePool
from icrl.serve import server
from icrl.testing import SGLangStub
from icrl.tiny import BASE_DIR
from icrl.tokenizer import ChatTokenizer
from icrl.trajectory import Trajectory
from icrl.wire import decode

ANSWER = "<answer> 42 </answer>"


@contextmanager
def elsewhere(opening):
    """Hold an asynchronous context open in a thread of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def wait(awaitable):
        return asyncio.run_coroutine_threadsafe(awaitable, loop).result(30)

    async def enter():
        context = opening()
        return context, await context.__aenter__()

    context, value = wait(enter())
    try:
        yield value
    finally:
        wait(context.__aexit__(None, None, None))
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@pytest.fixture
def stub():
    """A server of the embedded model, as far as one can see."""
    tokenizer = ChatTokenizer.load(BASE_DIR)
    with elsewhere(lambda: SGLangStub(lambda ids: ANSWER, tokenizer=tokenizer, model_path=str(BASE_DIR))) as stub:
        yield stub


@pytest.fixture
def remote():
    """A server whose model is not on this machine."""
    tokenizer = ChatTokenizer.load(BASE_DIR)
    with elsewhere(lambda: SGLangStub(lambda ids: ANSWER, tokenizer=tokenizer, model_path="/far/away")) as stub:
        yield stub


@pytest.fixture
def tasks(tmp_path):
    path = tmp_path / "tasks.jsonl"
    path.write_text('{"question": "six times seven?", "answers": ["42"]}\n')
    return str(path)


def test_run(stub, cache_home, capsys):
    run_command.main(["six times seven?", "--model", stub.address, "--json"])
    assert decode(capsys.readouterr().out, Trajectory).answer == "42"


def test_run_with_the_tokenizer_of_a_server_far_away(remote, capsys):
    with pytest.raises(ConfigError, match=r"tokenizer: .*/far/away"):
        run_command.main(["six times seven?", "--model", remote.address])
    run_command.main(["six times seven?", "--model", remote.address, "--tokenizer", str(BASE_DIR), "--json"])
    trajectory = decode(capsys.readouterr().out, Trajectory)
    assert trajectory.answer == "42"
    assert trajectory.ids[: trajectory.prompt_length] == next(iter(remote.seen.values()))


def test_run_with_a_chat_endpoint(capsys):
    with elsewhere(lambda: chat_endpoint(ANSWER)) as endpoint:
        run_command.main(["six times seven?", "--model", f"openai:{endpoint.url}", "--json"])
    assert decode(capsys.readouterr().out, Trajectory).answer == "42"


@pytest.mark.parametrize("more", [[], ["--no-tools"]])
def test_eval(stub, tasks, more, cache_home, capsys):
    eval_command.main([stub.address, "--tasks", tasks, "--json", *more])
    assert json.loads(capsys.readouterr().out)["em"] == 1.0


def test_eval_far_away(remote, tasks, capsys):
    eval_command.main([remote.address, "--tokenizer", str(BASE_DIR), "--tasks", tasks])
    assert f"{remote.address}, 0-shot, 1 tasks" in capsys.readouterr().out


def test_serve(stub, monkeypatch, cache_home):
    opened = []

    async def run_until_signalled(config, open_agent, lines):
        async with open_agent() as agent:
            opened.append((agent.model.engine, agent.model.limits, (await agent.run("six times seven?")).answer))

    monkeypatch.setattr(server, "run_until_signalled", run_until_signalled)
    logging.getLogger().setLevel(logging.WARNING)
    serve_command.main([stub.address, "--limits.max-turns", "3"])
    ((engine, limits, said),) = opened
    assert isinstance(engine, EnginePool)
    assert (limits.max_turns, said) == (3, "42")


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (None, "icrl-embedded"),
        ("runs/first", "first"),
        ("http://127.0.0.1:30000", "127.0.0.1:30000"),
        ("openai:https://api.example.com/v1#large", "large"),
    ],
)
def test_clients_are_told_a_name(model, name):
    assert server._name(model) == name
