from __future__ import annotations

import json
from pathlib import Path

import pytest

from icrl.commands import eval as module
from icrl.commands.eval import main
from icrl.errors import ConfigError, DataError
from icrl.runtime.agent import Agent
from icrl.runtime.store import read_trajectories
from icrl.testing import EchoTool, ScriptedEngine
from icrl.tiny import BASE_DIR


def answer(ids):
    """Answer every second question rightly, after one call."""
    text = ScriptedEngine([]).tokenizer.decode(ids).rpartition("Question: ")[2]
    if "<information>" not in text:
        return "<echo> x </echo>"
    return f"<answer> {'yes' if 'one' in text.splitlines()[0] else 'no'} </answer>"


@pytest.fixture
def engine(monkeypatch):
    """The engine that the command talks to instead of a model's."""
    engine = ScriptedEngine(answer)
    monkeypatch.setattr(module, "Agent", lambda model, tools, **options: Agent(engine, tools=[EchoTool()], **options))
    return engine


@pytest.fixture
def tasks(tmp_path):
    path = tmp_path / "tasks.jsonl"
    lines = [{"question": f"{word}?", "answers": ["yes"]} for word in ("one", "two", "one more", "three")]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_a_table_says_how_good_a_model_is(engine, tasks, capsys):
    main(["some-model", "--tasks", str(tasks), "--shots", "2"])
    shown = capsys.readouterr().out
    assert "some-model, 2-shot, 4 tasks" in shown
    rows = {line.split("│")[1].strip(): line.split("│")[2].strip() for line in shown.splitlines() if "│" in line}
    assert rows["exact match"] == rows["F1"] == "0.500"
    assert rows["whole format"] == rows["valid call"] == "1.000"
    assert rows["calls a trajectory"] == "1.00"
    assert rows["stopped: answer"] == "4"


def test_json_and_trajectories_say_the_same(engine, tasks, tmp_path, capsys):
    out = tmp_path / "t.jsonl"
    out.write_text("what was there before\n")
    main(["--tasks", str(tasks), "--limit", "3", "--samples", "2", "--json", "--trajectories", str(out)])
    result = json.loads(capsys.readouterr().out)
    assert (result["tasks"], result["samples"], result["shots"]) == (3, 2, 0)
    assert result["em"] == pytest.approx(2 / 3)
    trajectories = list(read_trajectories(out))
    assert [t.answer for t in trajectories] == ["yes", "yes", "no", "no", "yes", "yes"]
    assert {request.params.temperature for request in engine.requests} == {0.0}


def test_members_are_sampled_from_their_own_streams(engine, tasks):
    main(["--tasks", str(tasks), "--samples", "2", "--temperature", "1", "--seed", "5", "--json"])
    assert len({request.params.seed for request in engine.requests}) == len(engine.requests) == 16


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--limit", "-1"], r"limit: must be >= 0 \(0 takes all\), not -1"),
        (["--samples", "0"], r"samples: must be >= 1, not 0"),
        (["--shots", "9"], r"shots: 9 were asked for, but .* holds 8"),
        (["--shots", "-2"], r"shots: must be >= 0, not -2"),
    ],
)
def test_numbers_out_of_range_are_refused(options, problem, engine, tasks):
    with pytest.raises(ConfigError, match=problem):
        main(["--tasks", str(tasks), *options])
    assert engine.requests == []


def test_a_world_stands_for_its_questions_and_demonstrations(engine, capsys):
    main(["--world", "mixed", "--limit", "6", "--shots", "2", "--json"])
    result = json.loads(capsys.readouterr().out)
    assert (result["tasks"], result["shots"]) == (6, 2)
    assert set(result["em_by_world"]) == {"search", "code"}
    prompts = [engine.tokenizer.decode(request.ids) for request in engine.requests]
    assert all("19 * 98 - 11" in prompt and "<search>" in prompt for prompt in prompts)


def test_a_table_has_a_row_for_each_world(engine, tmp_path, capsys):
    path = tmp_path / "tasks.jsonl"
    worlds = {"one?": "moon", "two?": "sun", "one more?": "sun"}
    lines = [{"question": q, "answers": ["yes"], "metadata": {"world": w}} for q, w in worlds.items()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    main(["--tasks", str(path)])
    rows = [line.split("│") for line in capsys.readouterr().out.splitlines() if "exact match" in line]
    assert [(row[1].strip(), row[2].strip()) for row in rows] == [
        ("exact match", "0.667"),
        ("exact match, moon", "1.000"),
        ("exact match, sun", "0.500"),
    ]


def test_tasks_of_one_world_have_no_parts(engine, capsys):
    main(["--world", "code", "--limit", "2", "--json"])
    assert json.loads(capsys.readouterr().out)["em_by_world"] == {}


def test_a_misspelt_world_is_refused(engine):
    with pytest.raises(ConfigError, match=r"world: 'serach' is not one of .* Did you mean 'search'"):
        main(["--world", "serach"])


def test_questions_without_answers_are_refused_with_their_line(engine, tmp_path):
    path = tmp_path / "tasks.jsonl"
    path.write_text('{"question": "a?", "answers": ["b"]}\n{"question": "c?"}\n')
    with pytest.raises(DataError, match=r"tasks\.jsonl:2: .*answers"):
        main(["--tasks", str(path)])


@pytest.mark.parametrize("path", ["/dev/full", "/sys/t.jsonl"])
def test_trajectories_that_cannot_be_written_are_refused(path, engine, tasks, capsys):
    with pytest.raises(DataError, match=f"{path}: cannot be written"):
        main(["--tasks", str(tasks), "--trajectories", path])
    # A place that cannot be written at all shows before any work is done.
    assert bool(engine.requests) == (path == "/dev/full")


def test_without_tools_every_call_is_answered_with_an_error(cache_home, tmp_path, capsys):
    out = tmp_path / "t.jsonl"
    options = ["--limit", "8", "--shots", "3", "--no-tools", "--json", "--trajectories", str(out)]
    main([str(BASE_DIR), *options])
    result = json.loads(capsys.readouterr().out)
    assert (result["valid_call_rate"], result["tasks"], result["shots"]) == (0.0, 8, 3)
    results = [r for t in read_trajectories(Path(out)) for r in t.results]
    assert {r.error for r in results} <= {"ToolError", "ToolArgumentError"}
    assert all("switched off" in r.text for r in results if r.error == "ToolError")
    assert results
