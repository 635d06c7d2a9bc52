import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import results, tasks, trajectories

from icrl.errors import DataError
from icrl.trajectory import Row, StopReason, Trajectory
from icrl.types import Demonstration, Step, Task, ToolResult
from icrl.wire import decode, encode


@given(trajectories())
def test_round_trip_is_the_identity(t):
    assert decode(encode(t), Trajectory) == t


@given(tasks)
def test_tasks_round_trip(task):
    assert decode(encode(task), Task) == task


@given(results)
def test_results_round_trip(result):
    assert decode(encode(result), ToolResult) == result


def test_demonstrations_and_rows_round_trip():
    shown = Demonstration(query="q", answer="a", steps=(Step(tool="search", arguments={"query": "x"}, result="y"),))
    assert decode(encode(shown), Demonstration) == shown
    row = Row(
        token_ids=(1, 2),
        prompt_length=1,
        loss_mask=(False, True),
        logprobs=(0.0, -0.25),
        reward=0.5,
        group_id="g",
        trajectory_id="t",
        index=0,
        temperature=1.0,
        stop_reason=StopReason.MAX_TURNS,
        meta={"shots": 3},
    )
    assert decode(encode(row), Row) == row


@given(trajectories(), st.data())
def test_a_missing_field_is_refused_by_name(t, data):
    record = json.loads(encode(t))
    name = data.draw(st.sampled_from(sorted(record)))
    del record[name]
    with pytest.raises(DataError, match=name):
        decode(json.dumps(record), Trajectory)


@given(trajectories(), st.sampled_from(["id", "segments", "stop_reason", "turns", "shots", "task", "wall_s"]))
def test_a_mistyped_field_is_refused_by_name(t, name):
    record = json.loads(encode(t))
    record[name] = {"wrong": True} if name != "task" else 3
    with pytest.raises(DataError, match=name):
        decode(json.dumps(record), Trajectory)


def test_an_unknown_field_is_refused_with_the_nearest_name():
    record = json.loads(encode(Task(query="q")))
    record["anwsers"] = record["answers"]
    with pytest.raises(DataError, match=r"unknown field `anwsers` - at `\$`. Did you mean 'answers'"):
        decode(json.dumps(record), Task)


def test_a_law_that_is_broken_on_disk_is_refused():
    segment = {"source": "policy", "role": "text", "ids": [1, 2], "text": "", "turn": 0, "logprobs": [-0.5]}
    record = json.loads(encode(Trajectory(id="t", task=Task(query="q"), segments=(), stop_reason=StopReason.ANSWER)))
    record["segments"] = [segment | {"versions": [], "calls": [], "result": None}]
    with pytest.raises(DataError, match=r"Segment\.logprobs"):
        decode(json.dumps(record), Trajectory)


@pytest.mark.parametrize("damaged", [b"", b"{", b"[]", b"null", b"\xff"])
def test_damaged_json_is_refused(damaged):
    with pytest.raises(DataError, match="Trajectory"):
        decode(damaged, Trajectory)
