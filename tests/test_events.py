import gc
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import event_streams

from icrl.errors import DataError
from icrl.events import Recording, RunFinished, RunStarted, RunStopped, TextDelta, ToolOutput, TurnFinished, fold
from icrl.trajectory import Segment, StopReason, Trajectory, Turn, VersionSpan
from icrl.types import Task, ToolCall


@given(event_streams())
def test_folding_gives_the_trajectory_of_the_events(events):
    t = fold(events)
    started, stopped = events[0], events[-1]
    expected = list(started.segments)
    for event in events:
        if isinstance(event, TurnFinished):
            expected.append(event.segment)
        elif isinstance(event, ToolOutput):
            expected.extend(event.segments)
    assert list(t.segments) == expected
    assert (t.id, t.task, t.shots) == (started.trajectory_id, started.task, started.shots)
    assert (t.stop_reason, t.answer, t.error) == (stopped.stop_reason, stopped.answer, stopped.error)
    assert t.turns == tuple(e.turn for e in events if isinstance(e, TurnFinished))


@given(event_streams())
def test_fold_never_reads_the_last_payload_and_ignores_deltas(events):
    wrong = Trajectory(id="wrong", task=Task(query="w"), segments=(), stop_reason=StopReason.ANSWER)
    silent = [e for e in events if not isinstance(e, TextDelta)]
    assert fold([*events, RunFinished(trajectory=wrong)]) == fold(silent)


@given(event_streams(stopped=False))
def test_a_recording_is_always_the_sequence_so_far(events):
    recording = Recording()
    for event in events:
        recording.apply(event)
        assert tuple(recording.ids) == recording.trajectory().ids
    assert recording.trajectory().stop_reason is StopReason.ABORTED
    assert recording.trajectory(StopReason.DEADLINE).stop_reason is StopReason.DEADLINE


def test_events_must_begin_at_the_beginning():
    with pytest.raises(DataError, match="RunStarted"):
        fold([RunStopped(stop_reason=StopReason.ANSWER, answer=None, wall_s=0.0)])
    with pytest.raises(DataError, match="RunStarted"):
        fold([ToolOutput(segments=())])


def test_every_event_says_its_kind():
    from typing import get_args

    from icrl.events import Event

    kinds = [cls.__dataclass_fields__["kind"].default for cls in get_args(Event)]
    assert len(set(kinds)) == len(kinds)
    assert RunStarted(trajectory_id="t", task=Task(query="q"), segments=()).kind == "run_started"


def sampled(ids, logprobs, **fields):
    return Segment(source="policy", role="text", ids=ids, logprobs=logprobs, **fields)


def recorded(segments):
    recording = Recording()
    prompt = Segment(source="prompt", role="query", ids=(7, 8), text="q")
    recording.apply(RunStarted(trajectory_id="t", task=Task(query="q"), segments=(prompt,)))
    turn = Turn(index=0, finish_reason="eos", prompt_tokens=2, sampled_tokens=9, cached_tokens=0, generate_s=0.0)
    for segment in segments:
        recording.apply(TurnFinished(turn=turn, segment=segment))
    return recording, prompt


@given(st.lists(st.tuples(st.integers(0, 2**31 - 1), st.floats(allow_nan=False, allow_infinity=False)), max_size=99))
def test_ids_and_logprobs_come_back_exactly(tokens):
    ids, logprobs = tuple(i for i, _ in tokens), tuple(p for _, p in tokens)
    call = ToolCall(name="f", arguments={"a": [1]}, id="0.0", start=0, end=len(ids))
    versions = (VersionSpan(version=3, start=0, end=len(ids)),)
    segments = (sampled(ids, logprobs, text="said", turn=4, versions=versions, calls=(call,)), sampled((), ()))
    recording, prompt = recorded(segments)
    assert recording.segments == (prompt, *segments)
    assert [type(p) for p in recording.segments[1].logprobs] == [float] * len(ids)
    assert [p.hex() for p in recording.segments[1].logprobs] == [p.hex() for p in logprobs]


def test_a_recording_keeps_no_object_a_token():
    gc.collect()
    tracemalloc.start()
    try:
        kept = []
        for run in range(20):
            ids = tuple(range(100_000 + run * 2000, 102_000 + run * 2000))
            kept.append(recorded([sampled(ids, tuple(-i / 7 for i in ids))])[0])
        del ids
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held / (20 * 2000) < 20  # 4 bytes an id, 8 a logprob, and room to grow; objects would take 76
    assert kept[3].segments[1].ids[:2] == (106_000, 106_001)


def test_prompts_with_equal_ids_are_recorded_alike():
    first, second = (Segment(source="prompt", role="system", ids=tuple(range(5, 7))) for _ in range(2))
    recordings = [Recording(), Recording()]
    for recording, segment in zip(recordings, (first, second), strict=True):
        recording.apply(RunStarted(trajectory_id="t", task=Task(query="q"), segments=(segment, segment)))
        recording.ids.append(9)  # the buffer is the recording's own
    assert [list(r.ids) for r in recordings] == [[5, 6, 5, 6, 9]] * 2
