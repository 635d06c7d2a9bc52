import pytest
from hypothesis import given
from strategies import event_streams

from icrl.errors import DataError
from icrl.events import Recording, RunFinished, RunStarted, RunStopped, TextDelta, ToolOutput, TurnFinished, fold
from icrl.trajectory import StopReason, Trajectory
from icrl.types import Task


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
