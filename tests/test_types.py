import math

import pytest
from hypothesis import given
from strategies import trajectories

from icrl.errors import DataError
from icrl.trajectory import (
    Generation,
    Group,
    Row,
    Segment,
    StopReason,
    Trajectory,
    VersionSpan,
    policy_tokens,
    shared_prefix,
)
from icrl.types import Limits, SamplingParams, Task, ToolCall


def prompt(*ids, role="query"):
    return Segment(source="prompt", role=role, ids=ids, text="p")


def reply(*ids, **more):
    return Segment(source="policy", role="text", ids=ids, text="r", logprobs=(-0.5,) * len(ids), **more)


def trajectory(*segments, reason=StopReason.ANSWER, **more):
    return Trajectory(id="t", task=Task(query="q"), segments=segments, stop_reason=reason, **more)


def row(**changes):
    fields = {
        "token_ids": (1, 2, 3),
        "prompt_length": 1,
        "loss_mask": (False, True, True),
        "logprobs": (0.0, -0.1, -0.2),
        "reward": 1.0,
        "group_id": "g",
        "trajectory_id": "t",
        "index": 0,
        "temperature": 1.0,
        "stop_reason": StopReason.ANSWER,
    }
    return Row(**{**fields, **changes})


@given(trajectories())
def test_segment_ids_concatenate_to_the_sequence(t):
    assert list(t.ids) == [i for s in t.segments for i in s.ids]
    assert len(t.mask()) == len(t.logprobs()) == len(t.ids)


@given(trajectories())
def test_mask_follows_provenance_and_only_sampled_tokens_have_logprobs(t):
    position = 0
    for segment in t.segments:
        span = slice(position, position + len(segment.ids))
        assert set(t.mask()[span]) <= {segment.source == "policy"}
        assert (segment.logprobs is not None) == (segment.source == "policy")
        assert t.logprobs()[span] == (segment.logprobs or (0.0,) * len(segment.ids))
        position = span.stop


@given(trajectories())
def test_mask_policy_decides_from_the_source_alone(t):
    everything = t.mask(lambda source: source != "prompt")
    assert sum(everything) == len(t.ids) - t.prompt_length
    assert sum(t.mask(policy_tokens)) == t.sampled_tokens


def test_prompt_response_and_shared_prefix():
    segments = (prompt(1, role="system"), prompt(2, 3, role="demo"), prompt(4), reply(5))
    t = trajectory(*segments)
    assert (t.prompt_length, t.shared_prefix, t.response, t.response_text) == (4, 3, (segments[3],), "r")
    assert shared_prefix((prompt(1, role="query"), prompt(2, role="demo"))) == 0


@pytest.mark.parametrize(
    ("build", "field"),
    [
        (lambda: Segment(source="policy", role="text", ids=(1,)), "Segment.logprobs"),
        (lambda: Segment(source="tool", role="tool_result", ids=(1,), logprobs=(0.0,)), "Segment.logprobs"),
        (lambda: Segment(source="policy", role="text", ids=(1,), logprobs=()), "Segment.logprobs"),
        (lambda: Segment(source="policy", role="text", ids=(1,), logprobs=(math.nan,)), "Segment.logprobs"),
        (lambda: Segment(source="prompt", role="query", ids=(1,), calls=(ToolCall(name="a"),)), "Segment.calls"),
        (lambda: reply(1, calls=(ToolCall(name="a", start=0, end=2),)), "Segment.calls"),
        (
            lambda: Segment(
                source="tool", role="tool_result", ids=(1,), versions=(VersionSpan(version=0, start=0, end=1),)
            ),
            "Segment.versions",
        ),
        (lambda: ToolCall(name="a", start=2, end=1), "ToolCall.end"),
        (lambda: Task(query=""), "Task.query"),
        (lambda: Generation(ids=(1, 2), logprobs=(0.0,), finish_reason="eos"), "Generation.logprobs"),
        (lambda: trajectory(reply(1), prompt(2)), "segments[1].source"),
        (lambda: trajectory(reply(1), reason=StopReason.ERROR), "Trajectory.error"),
        (lambda: Group(task=Task(query="q"), trajectories=(), rewards=(1.0,)), "Group.rewards"),
        (lambda: row(logprobs=(0.0,)), "Row.logprobs"),
        (lambda: row(logprobs=(0.0, math.inf, 0.0)), "Row.logprobs"),
        (lambda: row(loss_mask=(True, True, True)), "Row.loss_mask"),
        (lambda: row(loss_mask=(True,)), "Row.loss_mask"),
        (lambda: row(prompt_length=0), "Row.prompt_length"),
        (lambda: row(shared_prefix=2), "Row.shared_prefix"),
        (lambda: SamplingParams(temperature=-1), "temperature"),
        (lambda: SamplingParams(temperature=math.nan), "temperature"),
        (lambda: SamplingParams(top_p=0), "top_p"),
        (lambda: SamplingParams(top_k=-1), "top_k"),
        (lambda: SamplingParams(max_tokens=0), "max_tokens"),
        (lambda: SamplingParams(stop=("",)), "stop"),
        (lambda: Limits(max_turns=0), "max_turns"),
        (lambda: Limits(deadline_s=0), "deadline_s"),
        (lambda: Limits(max_tool_calls=-1), "max_tool_calls"),
    ],
)
def test_unlawful_values_cannot_be_built_and_the_message_names_the_field(build, field):
    with pytest.raises(DataError) as caught:
        build()
    assert str(caught.value).startswith(field)


def test_group_leaves_broken_members_out_of_the_comparison():
    from icrl.trajectory import Failure

    broken = trajectory(reason=StopReason.ERROR, error=Failure(kind="EngineError", message="gone"))
    good = trajectory(reply(1))
    group = Group(task=good.task, trajectories=(good, broken, good), rewards=(1.0, 0.0, 1.0))
    assert not group.informative
    assert [t for t, _ in group.scored()] == [good, good]
    assert Group(task=good.task, trajectories=(good, good), rewards=(1.0, 0.0)).informative


def test_versions_span_the_whole_trajectory():
    spans = (VersionSpan(version=3, start=0, end=1), VersionSpan(version=5, start=1, end=2))
    assert trajectory(prompt(1), reply(1, 2, versions=spans)).versions() == (3, 5)
    assert trajectory(prompt(1)).versions() == (0, 0)


def test_a_conversation_is_its_own_messages():
    from icrl.types import Message

    messages = (Message(role="system", content="s"), Message(role="user", content="u"))
    assert Task(query=messages).messages == messages
    assert Task(query="u").messages == (Message(role="user", content="u"),)
