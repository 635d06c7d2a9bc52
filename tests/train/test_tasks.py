"""Task files are read strictly, and drawn without state."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icrl.errors import ConfigError, DataError
from icrl.train.tasks import TaskSampler, load_tasks
from icrl.types import Task


@pytest.fixture
def tasks(tmp_path):
    path = tmp_path / "nq.jsonl"

    def load(*lines, **options):
        encoded = (line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines)
        path.write_bytes(b"\n".join(encoded) + b"\n")
        return load_tasks(path, **options)

    return load


@pytest.mark.parametrize("query", ["question", "query"])
@pytest.mark.parametrize(("key", "value"), [("answers", ["a1", "b"]), ("answer", "a1"), ("golden_answers", ["a1"])])
def test_the_usual_spellings(tasks, query, key, value):
    (task,) = tasks({query: "who?", key: value, "id": "train_0", "metadata": {"hops": 2}})
    assert task == Task(
        query="who?", answers=tuple([value] if isinstance(value, str) else value), id="train_0", metadata={"hops": 2}
    )


def test_numbers_become_text_and_missing_ids_name_the_line(tasks):
    first, second = tasks({"question": "a", "answer": 113}, b"", {"question": "b", "answer": [1.5, "x"], "id": 7})
    assert (first.answers, first.id) == (("113",), "nq:1")
    assert (second.answers, second.id) == (("1.5", "x"), "7")


def test_a_byte_order_mark_and_windows_line_ends_do_no_harm(tasks):
    first, second = tasks(b'\xef\xbb\xbf{"question": "a", "answer": "x"}\r', b'{"question": "b", "answer": "y"}\r')
    assert (first.query, second.query) == ("a", "b")


def test_answers_may_be_absent_where_nothing_is_scored(tasks):
    (task,) = tasks({"question": "who?"}, require_answers=False)
    assert task.answers == ()


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"question": "a", "answer": }', "not valid JSON: JSON is malformed: invalid character (byte 28)"),
        (b'{"question": "\xff"}', "not valid JSON: "),
        ([1], "needs a JSON object, not list"),
        (
            {"question": "a"},
            "answers: is missing; a question without reference answers or metadata.tests cannot be scored",
        ),
        ({"question": "a", "answers": []}, "answers: is missing"),
        ({"question": "a", "answers": None}, "answers: is missing"),
        ({"answers": ["x"]}, "question: is missing"),
        ({"question": " ", "answers": ["x"]}, "question: needs text, not ' '"),
        ({"question": 3, "answers": ["x"]}, "question: needs text, not 3"),
        ({"question": "a", "anwers": ["x"]}, "unknown key 'anwers'. Did you mean 'answers'? Further facts belong"),
        ({"question": "a", "query": "b", "answer": "x"}, "query: is given as 'question' too; keep one"),
        ({"question": "a", "answers": ["x", "The"]}, "answers: 'The' is empty after normalisation"),
        ({"question": "a", "answer": "..."}, "answers: '...' is empty after normalisation"),
        ({"question": "a", "answer": True}, "answers: needs text or a list of texts, not True"),
        ({"question": "a", "answer": [["x"]]}, "answers: needs text or a list of texts, not ['x']"),
        ({"question": "a", "answer": "x", "id": [1]}, "id: needs text or a whole number, not [1]"),
        ({"question": "a", "answer": "x", "id": "one"}, "id: 'one' was used in line 1 already"),
        ({"question": "a", "answer": "x", "metadata": [1]}, "metadata: needs an object, not [1]"),
    ],
)
def test_a_broken_line_is_refused_with_file_line_and_reason(tasks, tmp_path, line, problem):
    with pytest.raises(DataError) as raised:
        tasks({"question": "fine", "answer": "x", "id": "one"}, line)
    assert str(raised.value).startswith(f"{tmp_path / 'nq.jsonl'}:2: {problem}")


def test_a_file_that_is_not_there_is_named_with_its_nearest_neighbour(tasks, tmp_path):
    tasks({"question": "a", "answer": "x"})
    with pytest.raises(DataError, match=r"nqq\.jsonl: no such file\. Did you mean 'nq\.jsonl'\?"):
        load_tasks(tmp_path / "nqq.jsonl")
    with pytest.raises(DataError, match="cannot read it: Is a directory"):
        load_tasks(tmp_path)


def test_an_empty_file_is_refused(tasks):
    with pytest.raises(DataError, match="holds no tasks"):
        tasks(b"")


def sampler(count: int, seed: int = 0) -> TaskSampler:
    return TaskSampler([Task(query=str(i), answers=("x",)) for i in range(count)], seed)


@given(count=st.integers(1, 20), n=st.integers(1, 8), steps=st.integers(1, 30), seed=st.integers(0, 5))
def test_every_task_is_drawn_once_before_any_is_drawn_again(count, n, steps, seed):
    draw = sampler(count, seed)
    drawn = Counter(task.query for step in range(steps) for task in draw.batch(step, n))
    assert sum(drawn.values()) == n * steps
    assert max(drawn.values()) - min(drawn.get(str(i), 0) for i in range(count)) <= 1


@given(order=st.permutations(range(12)), seed=st.integers(0, 5))
def test_a_step_does_not_depend_on_which_steps_were_asked_for_before(order, seed):
    straight = [sampler(7, seed).batch(step, 3) for step in range(12)]
    draw = sampler(7, seed)
    assert {step: draw.batch(step, 3) for step in order} == dict(enumerate(straight))


def test_epochs_and_seeds_shuffle_differently():
    epochs = [sampler(50).batch(step, 50) for step in range(2)]
    assert epochs[0] != epochs[1]
    assert sampler(50, seed=1).batch(0, 50) != epochs[0]


def test_nothing_to_draw_from_is_refused():
    with pytest.raises(ConfigError, match="tasks: there are none"):
        TaskSampler([], 0)


def test_a_task_with_tests_needs_no_answers(tmp_path):
    path = tmp_path / "tasks.jsonl"
    path.write_text('{"question": "Square a number.", "metadata": {"tests": [{"stdin": "3", "stdout": "9"}]}}\n')
    (task,) = load_tasks(path)
    assert task.answers == ()
    assert task.metadata["tests"][0]["stdout"] == "9"
