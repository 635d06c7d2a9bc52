"""What the main job promises, on the real thing: minutes, hence its own tier (`pytest -m learning`)."""

import json
import subprocess
import sys

import pytest

from icrl.runtime.store import read_trajectories
from icrl.tiny import HELD_OUT
from icrl.train.tasks import load_tasks

pytestmark = [pytest.mark.learning, pytest.mark.timeout(1500)]


def icrl(*arguments):
    done = subprocess.run([sys.executable, "-m", "icrl", *arguments], check=True, capture_output=True, text=True)
    return done.stdout


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    run = tmp_path_factory.mktemp("learning") / "run"
    subprocess.run([sys.executable, "-m", "icrl.train", f"--output-dir={run}"], check=True)
    return run


def test_the_main_job_learns_to_search(trained):
    report = json.loads((trained / "report.json").read_text())
    assert report["held_out_tasks"] >= 400
    assert report["zero_shot_em_before"] <= 0.02
    assert report["zero_shot_em"] >= 0.95
    assert report["format_rate"] >= 0.9


def test_without_the_tool_it_knows_nothing(trained):
    assert json.loads(icrl("eval", str(trained), "--no-tools", "--json"))["em"] <= 0.05


def test_the_trained_directory_answers_zero_shot_with_a_call(trained):
    question = load_tasks(HELD_OUT)[0].query
    assert "answer:" in icrl("run", "--model", str(trained), question)
    asked = icrl("run", "--model", str(trained), "--json", question)
    path = trained / "asked.jsonl"
    path.write_text(asked)
    (trajectory,) = read_trajectories(path)
    assert trajectory.shots == 0
    assert trajectory.results[0].error is None


@pytest.fixture(scope="module")
def trained_on_code(tmp_path_factory):
    run = tmp_path_factory.mktemp("learning") / "code"
    subprocess.run([sys.executable, "-m", "icrl.train", "--world=code", f"--output-dir={run}"], check=True)
    return run


def test_the_code_world_is_learnt_too(trained_on_code):
    report = json.loads((trained_on_code / "report.json").read_text())
    assert report["held_out_tasks"] >= 400
    assert report["zero_shot_em_before"] <= 0.02
    assert report["zero_shot_em"] >= 0.9


def test_without_python_it_cannot_calculate(trained_on_code):
    assert json.loads(icrl("eval", str(trained_on_code), "--world", "code", "--no-tools", "--json"))["em"] <= 0.05


def test_zero_shot_reinforcement_alone_does_not_learn(tmp_path):
    run = tmp_path / "run"
    arguments = ["--schedule=0:40", "--promote-at=None", f"--output-dir={run}"]
    subprocess.run([sys.executable, "-m", "icrl.train", *arguments], check=True)
    assert json.loads((run / "report.json").read_text())["zero_shot_em"] <= 0.05
