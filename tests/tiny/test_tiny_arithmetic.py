from __future__ import annotations

import json
import re
from itertools import combinations
from pathlib import Path

import pytest

from icrl import tiny
from icrl.runtime.prompt import load_demonstrations
from icrl.tiny.arithmetic import QUESTIONS, SHAPES, Arithmetic, write_arithmetic
from icrl.train.rewards import normalize
from icrl.train.tasks import load_tasks

WORLD = Arithmetic()
TASKS = (*WORLD.train, *WORLD.held_out)


def numbers(expression: str) -> tuple[str, ...]:
    return tuple(sorted(re.findall(r"\d+", expression)))


def test_sizes():
    assert [len(WORLD.train), len(WORLD.held_out), len(WORLD.demonstrations)] == [1200, 400, 8]
    assert len({t.id for t in TASKS}) == 1600


def test_training_demonstrations_and_held_out_share_no_set_of_numbers():
    shown = {numbers(d.query) for d in WORLD.demonstrations}
    train, held_out = ({numbers(t.metadata["expression"]) for t in tasks} for tasks in (WORLD.train, WORLD.held_out))
    assert [len(train), len(held_out), len(shown)] == [1200, 400, 8]
    assert len(train | held_out | shown) == 1608


def test_every_answer_is_what_python_says():
    for task in TASKS:
        assert task.answers == (str(eval(task.metadata["expression"])),)
        assert task.query in [q.format(x=task.metadata["expression"]) for q in QUESTIONS]


def test_results_cannot_be_guessed():
    results = [int(t.answers[0]) for t in TASKS]
    assert all(100 <= result < 100_000 for result in results)
    assert max(map(results.count, results)) <= 4
    assert sum(result >= 1000 for result in results) / len(results) > 0.8
    assert not any(t.answers[0] in t.query for t in TASKS)


def test_answers_survive_the_normalisation_of_the_reward():
    assert all(normalize(t.answers[0]) == t.answers[0] for t in TASKS)


def test_shapes_and_wordings_are_all_common():
    shapes = [re.sub(r"\d+", "#", t.metadata["expression"]) for t in WORLD.train]
    assert {re.sub(r"{\w}", "#", s) for s in SHAPES} == set(shapes)
    assert all(shapes.count(s) > 100 for s in set(shapes))
    starts = [t.query.split()[0] for t in WORLD.train]
    assert all(0.2 < starts.count(q.split()[0]) / len(starts) < 0.3 for q in QUESTIONS)


def test_demonstrations_call_the_tool_and_answer_what_it_echoes():
    for demonstration in WORLD.demonstrations:
        (step,) = demonstration.steps
        assert step.tool == "python"
        value = eval(step.arguments["code"])
        assert str(value) == step.result == demonstration.answer


def test_any_three_demonstrations_show_more_than_one_shape():
    shapes = [re.sub(r"\d+", "#", d.steps[0].thought) for d in WORLD.demonstrations]
    assert all(len(set(trio)) > 1 for trio in combinations(shapes, 3))
    assert len({d.answer for d in WORLD.demonstrations}) == 8


def test_shipped_files_are_what_the_code_computes(tmp_path: Path):
    write_arithmetic(WORLD, tmp_path)
    for path in (tiny.CODE_TRAIN, tiny.CODE_HELD_OUT, tiny.CODE_DEMONSTRATIONS):
        assert path.read_bytes() == (tmp_path / path.name).read_bytes(), path.name


def test_shipped_files_load_as_what_they_were():
    assert load_tasks(tiny.CODE_HELD_OUT) == WORLD.held_out
    assert load_demonstrations(tiny.CODE_DEMONSTRATIONS) == WORLD.demonstrations
    assert all(json.loads(line)["id"] for line in tiny.CODE_TRAIN.read_text().splitlines())


def test_another_seed_asks_other_problems():
    assert not {t.id for t in Arithmetic(seed=1).held_out} & {t.id for t in WORLD.held_out[:20]}
    assert Arithmetic(seed=1).train == Arithmetic(seed=1).train


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_evaluate_as_python_does(shape: str):
    assert SHAPES[shape](12, 34, 56) == eval(shape.format(a=12, b=34, c=56))
