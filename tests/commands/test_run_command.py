from __future__ import annotations

import pytest

from icrl.commands import run as module
from icrl.commands.run import main
from icrl.errors import ConfigError
from icrl.runtime.agent import Agent
from icrl.testing import EchoTool, ScriptedEngine
from icrl.trajectory import Role, StopReason, Trajectory
from icrl.wire import decode

SCRIPT = ["<echo> hi [bold] </echo>", "<answer> done </answer>"]


@pytest.fixture
def engine(monkeypatch):
    """The engine that the command talks to instead of a model's."""
    engine = ScriptedEngine(SCRIPT)
    monkeypatch.setattr(module, "Agent", lambda model, **options: Agent(engine, tools=[EchoTool()], **options))
    return engine


def test_a_run_is_shown_as_it_happens(engine, capsys):
    main(["Who is it?"])
    shown = capsys.readouterr().out
    order = ["Question: Who is it?", SCRIPT[0], "<information> hi [bold] </information>", SCRIPT[1], "answer: done"]
    positions = [shown.index(piece) for piece in order]
    assert positions == sorted(positions)
    assert "1 tool calls" in shown


def test_every_role_has_a_style():
    assert set(module.STYLES) == set(Role.__args__)


def test_options_reach_the_engine(engine, capsys):
    main(["q", "--temperature", "0.5", "--max-tokens", "77", "--shots", "2", "--seed", "4", "--json"])
    trajectory = decode(capsys.readouterr().out, Trajectory)
    assert trajectory.shots == 2
    assert {request.params.max_tokens for request in engine.requests} == {77}
    assert {request.params.temperature for request in engine.requests} == {0.5}


def test_json_is_one_line_and_greedy_by_default(engine, capsys):
    main(["q", "--json"])
    (line,) = capsys.readouterr().out.splitlines()
    trajectory = decode(line, Trajectory)
    assert (trajectory.answer, trajectory.stop_reason) == ("done", StopReason.ANSWER)
    assert trajectory.task.query == "q"
    assert engine.requests[0].params.temperature == 0


def test_a_run_without_answer_says_why(monkeypatch, capsys):
    monkeypatch.setattr(module, "Agent", lambda model, **options: Agent(ScriptedEngine([]), **options))
    main(["q"])
    shown = capsys.readouterr().out
    assert "answer: none (error)" in shown
    assert "EngineError: scripted: the script has 0 replies" in shown


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--shots", "-1"], r"shots: must be >= 0, not -1"),
        (["--shots", "99"], r"shots: 99 were asked for, but .*demonstrations\.yaml holds 8"),
    ],
)
def test_shots_that_cannot_be_shown_are_refused(options, problem, engine):
    with pytest.raises(ConfigError, match=problem):
        main(["q", *options])
    assert engine.requests == []


def test_the_embedded_model_answers_in_some_way(cache_home, capsys):
    main(["What is the code of Rikor?", "--max-tokens", "12", "--json"])
    trajectory = decode(capsys.readouterr().out, Trajectory)
    assert trajectory.error is None
    assert 1 <= trajectory.turns[0].sampled_tokens <= 12
