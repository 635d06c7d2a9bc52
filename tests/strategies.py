"""Hypothesis strategies for the types that everything speaks."""

from __future__ import annotations

from hypothesis import strategies as st

from icrl.events import (
    CallFinished,
    CallStarted,
    Event,
    RunStarted,
    RunStopped,
    TextDelta,
    ToolOutput,
    TurnFinished,
)
from icrl.trajectory import Failure, Segment, StopReason, Trajectory, Turn, VersionSpan
from icrl.types import Message, Task, ToolCall, ToolResult

texts = st.text(max_size=12)
ids = st.lists(st.integers(0, 2**31 - 1), max_size=6).map(tuple)
logprob = st.floats(-50, 0, width=32)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | texts,
    lambda children: st.lists(children, max_size=3) | st.dictionaries(texts, children, max_size=3),
    max_leaves=4,
)
objects = st.dictionaries(texts, json_values, max_size=3)
results = st.builds(
    ToolResult,
    call_id=texts,
    name=texts,
    text=texts,
    error=st.none() | texts,
    wall_s=st.floats(0, 1e6),
    truncated=st.booleans(),
)
messages = st.builds(
    Message,
    role=st.sampled_from(["system", "user", "assistant", "tool"]),
    content=texts,
    tool_call_id=st.none() | texts,
)
tasks = st.builds(
    Task,
    query=st.text(min_size=1, max_size=12) | st.lists(messages, min_size=1, max_size=3).map(tuple),
    answers=st.lists(texts, max_size=3).map(tuple),
    id=texts,
    metadata=objects,
)


@st.composite
def calls(draw: st.DrawFn, length: int) -> ToolCall:
    start = draw(st.integers(0, length))
    return ToolCall(
        name=draw(texts),
        arguments=draw(objects),
        id=draw(texts),
        error=draw(st.none() | texts),
        start=start,
        end=draw(st.integers(start, length)),
    )


@st.composite
def sampled_segments(draw: st.DrawFn, turn: int = 0) -> Segment:
    tokens = draw(ids)
    return Segment(
        source="policy",
        role="text",
        ids=tokens,
        text=draw(texts),
        turn=turn,
        logprobs=tuple(draw(logprob) for _ in tokens),
        versions=(VersionSpan(version=draw(st.integers(0, 9)), start=0, end=len(tokens)),) if tokens else (),
        calls=tuple(draw(st.lists(calls(len(tokens)), max_size=2))),
    )


prompt_segments = st.builds(
    Segment,
    source=st.just("prompt"),
    role=st.sampled_from(["system", "demo", "history", "query"]),
    ids=ids,
    text=texts,
)
observed_segments = st.builds(
    Segment,
    source=st.sampled_from(["tool", "runtime"]),
    role=st.sampled_from(["tool_result", "notice", "separator"]),
    ids=ids,
    text=texts,
    turn=st.integers(0, 3),
    result=st.none() | results,
)


@st.composite
def event_streams(draw: st.DrawFn, *, stopped: bool = True) -> list[Event]:
    """Events as a run would emit them."""
    events: list[Event] = [
        RunStarted(
            trajectory_id=draw(texts),
            task=draw(tasks),
            segments=tuple(draw(st.lists(prompt_segments, max_size=3))),
            shots=draw(st.integers(0, 3)),
        )
    ]
    length = sum(len(s.ids) for s in events[0].segments)
    for index in range(draw(st.integers(0, 3))):
        segment = draw(sampled_segments(index))
        events.append(TextDelta(turn=index, text=draw(texts)))
        turn = Turn(
            index=index,
            finish_reason=draw(st.sampled_from(["eos", "stop", "length", "abort"])),
            prompt_tokens=length,
            sampled_tokens=len(segment.ids),
            cached_tokens=draw(st.integers(0, length)),
            generate_s=draw(st.floats(0, 100)),
        )
        events.append(TurnFinished(turn=turn, segment=segment))
        for call in segment.calls:
            events.append(CallStarted(call=call))
            events.append(CallFinished(call=call, result=draw(results)))
        output = tuple(draw(st.lists(observed_segments, max_size=2)))
        events.append(ToolOutput(segments=output))
        length += len(segment.ids) + sum(len(s.ids) for s in output)
    if stopped:
        reason = draw(st.sampled_from(StopReason))
        failed = reason.failed
        events.append(
            RunStopped(
                stop_reason=reason,
                answer=draw(st.none() | texts),
                wall_s=draw(st.floats(0, 1e6)),
                error=Failure(kind="EngineError", message=draw(texts)) if failed else None,
            )
        )
    return events


@st.composite
def trajectories(draw: st.DrawFn) -> Trajectory:
    from icrl.events import fold

    return fold(draw(event_streams()))
