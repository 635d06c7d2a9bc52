from __future__ import annotations

import asyncio
import logging
import os
from dataclasses import replace
from threading import Event

import pytest
from served import ask

from icrl.errors import ConfigError
from icrl.events import RunFinished, RunStopped
from icrl.runtime.agent import Agent
from icrl.runtime.store import read_trajectories
from icrl.serve import training_log as module
from icrl.serve.training_log import REDACTED, TrainingLog, redacted
from icrl.testing import EchoTool, ScriptedEngine
from icrl.trajectory import Failure, StopReason, Trajectory
from icrl.types import Task
from icrl.wire import decode, encode

CALL = '<tool_call>{"name": "echo", "arguments": {"text": "their secret"}}</tool_call>'
LOST = '<tool_call>{"name": "leaked_secret", "arguments": {"text": "x"}}</tool_call>'
BROKEN = "<tool_call>{secret</tool_call>"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "logs" / "served.jsonl"


def finished(trajectory):
    return RunFinished(trajectory=trajectory)


def example(number=0, answer="x"):
    return Trajectory(id=f"t{number}", task=Task(query="q"), segments=(), stop_reason=StopReason.ANSWER, answer=answer)


def write(path, trajectories, **options):
    log = TrainingLog(path, **options)
    for trajectory in trajectories:
        log.watch(trajectory.id)(finished(trajectory))
    log.close()


def run(*replies):
    agent = Agent(ScriptedEngine(replies), tools=[EchoTool()], dialect="hermes")
    return asyncio.run(agent.run("What is my secret?", seed=0)).trajectory


def test_what_was_served_can_be_read_again(path):
    whole = run(CALL, "The secret is out.")
    log = TrainingLog(path)
    hear = log.watch(whole.id)
    hear(RunStopped(stop_reason=StopReason.ANSWER, answer="x", wall_s=0.1))
    hear(finished(whole))
    log.close()
    assert list(read_trajectories(path)) == [whole]


def test_only_the_owner_may_read_it_also_after_it_was_rotated(path):
    line = len(encode(example()) + b"\n")
    umask = os.umask(0)
    try:
        write(path, [example(i) for i in range(10)], rotate_bytes=3 * line, kept_files=2)
    finally:
        os.umask(umask)
    files = sorted(path.parent.iterdir())
    assert [file.name for file in files] == ["served.jsonl", "served.jsonl.1", "served.jsonl.2"]
    assert {oct(file.stat().st_mode & 0o777) for file in files} == {"0o600"}
    kept = [[t.id for t in read_trajectories(file)] for file in reversed(files)]
    assert kept == [["t3", "t4", "t5"], ["t6", "t7", "t8"], ["t9"]]


def test_a_line_that_is_longer_than_a_file_gets_one_of_its_own(path):
    write(path, [example(0), example(1, "y" * 1000), example(2)], rotate_bytes=500)
    assert [t.id for t in read_trajectories(path)] == ["t2"]
    assert [t.id for t in read_trajectories(path.with_name("served.jsonl.1"))] == ["t1"]


def test_nothing_that_anybody_wrote_is_left_where_it_is_redacted(path):
    whole = run(f"<think>the secret</think>{CALL}{LOST}{BROKEN}", "The secret is out.")
    failure = Failure(kind="EngineError", message="the secret broke")
    broken = replace(whole, id="b", stop_reason=StopReason.ERROR, answer=None, error=failure)
    write(path, [whole, broken], redact=True)
    text = path.read_text(encoding="utf-8")
    assert "secret" in encode(broken).decode()
    assert "secret" not in text
    kept, failed = read_trajectories(path)
    assert (kept.answer, failed.error.kind) == (REDACTED, "EngineError")
    assert kept.turns == whole.turns
    assert [len(s.ids) for s in kept.segments] == [len(s.ids) for s in whole.segments]
    assert {token for segment in kept.segments for token in segment.ids} == {0}
    names = [call.name for segment in kept.segments for call in segment.calls]
    assert names[:2] == ["echo", REDACTED]
    assert [result.error for result in kept.results] == [result.error for result in whole.results]
    assert decode(encode(redacted(kept)), Trajectory) == kept


def test_a_place_that_cannot_be_written_is_refused_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "log", tmp_path):
        with pytest.raises(ConfigError, match=r"log_trajectories: .* cannot be written"):
            TrainingLog(path)


def test_a_disk_that_fails_costs_a_line_and_no_more(path, caplog):
    log = TrainingLog(path)
    path.unlink()
    path.mkdir()
    log.watch("t0")(finished(example()))
    log.close()
    assert "trajectory t0 could not be written down" in caplog.text


def test_a_disk_that_hangs_costs_lines_and_no_memory(path, caplog, monkeypatch):
    go = Event()
    monkeypatch.setattr(module, "MAX_WAITING", 3)
    monkeypatch.setattr(module, "CLOSE_TIMEOUT_S", 0.01)
    log = TrainingLog(path)
    monkeypatch.setattr(log, "_append", lambda line: go.wait(10.0))
    for i in range(10):
        log.watch(f"t{i}")(finished(example(i)))
    assert 6 <= log.dropped <= 7
    assert "trajectory t9 is not written down" in caplog.text
    log.close()
    assert "trajectories are lost" in caplog.text
    go.set()


async def test_it_is_off_unless_asked_for(serve, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    client = await serve(["yes"])
    async with client.post("/v1/chat/completions", json=ask()) as response:
        assert response.status == 200
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(autouse=True)
def _levels(caplog):
    caplog.set_level(logging.WARNING, logger="icrl.serve")
