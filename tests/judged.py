"""Small trajectories for rewards to judge."""

from __future__ import annotations

from icrl.trajectory import Segment, StopReason, Trajectory
from icrl.types import Task, ToolCall

TASK = Task(query="code of Rikor?", answers=("113",))


def reply(text: str, calls: int = 0) -> Segment:
    made = tuple(ToolCall(name="search") for _ in range(calls))
    return Segment(source="policy", role="text", ids=(1,), text=text, logprobs=(-0.5,), calls=made)


def prompt(text: str) -> Segment:
    return Segment(source="prompt", role="demo", ids=(7, 8), text=text)


def trajectory(answer: str | None = "113", *segments: Segment, **fields) -> Trajectory:
    fields = {"stop_reason": StopReason.ANSWER, **fields}
    return Trajectory(id="t0", task=TASK, segments=segments or (reply("x"),), answer=answer, **fields)


def tagged(response) -> bool:
    return "<answer>" in "".join(segment.text for segment in response)


def asked(*golds: str, **metadata) -> Task:
    return Task(query="q", answers=golds, id="t7", metadata=metadata)
