"""Trainer and engine are compared where they have to agree; a run in which that is nowhere says so."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from icrl.errors import WeightSyncError
from icrl.train.gap import UNWATCHED, Gap, GapWatch, exact_spans
from icrl.train.metrics import StepMetrics
from icrl.train.rows import rows_of
from icrl.trajectory import Group, Segment, StopReason, Trajectory, VersionSpan
from icrl.types import Task

PROMPT = Segment(source="prompt", role="query", ids=(1, 2, 3), text="q")


def turn(*versions: int) -> Segment:
    """Make a turn whose tokens were sampled under these versions."""
    edges = [*(i for i in range(len(versions)) if i == 0 or versions[i] != versions[i - 1]), len(versions)]
    spans = [VersionSpan(version=versions[start], start=start, end=end) for start, end in itertools.pairwise(edges)]
    ids = tuple(range(len(versions)))
    return Segment(source="policy", role="text", ids=ids, logprobs=(-1.0,) * len(ids), versions=tuple(spans))


def observation(tokens: int) -> Segment:
    return Segment(source="tool", role="tool_result", ids=(9,) * tokens)


def trajectory(*segments: Segment) -> Trajectory:
    return Trajectory(id="t", task=Task(query="q"), segments=(PROMPT, *segments), stop_reason=StopReason.ANSWER)


def found(*segments: Segment, begun_under: int | None = None) -> list[tuple[int, int, int]]:
    spans = exact_spans(trajectory(*segments), begun_under)
    return [(span.version, span.start, span.end) for span in spans]


def test_what_was_begun_and_ended_under_one_version_is_exact_as_a_whole():
    assert found(turn(4, 4), observation(2), turn(4), begun_under=4) == [(4, 3, 5), (4, 7, 8)]


def test_only_requests_that_were_certainly_sent_after_the_change_count():
    # The change falls into a turn: that one is mixed, and the next was sent when its end had been read.
    assert found(turn(4, 5), observation(1), turn(5, 5), begun_under=4) == [(5, 6, 8)]
    # It falls between two: the next may have waited at the server with keys and values of the old weights.
    assert found(turn(4), observation(1), turn(5), observation(1), turn(5), begun_under=4) == [(4, 3, 4), (5, 7, 8)]
    # So may the first, unless the trajectory was begun afterwards.
    assert found(turn(5), begun_under=4) == found(turn(5)) == []
    assert found(turn(5), begun_under=5) == [(5, 3, 4)]


def test_a_request_that_brought_nothing_back_says_nothing():
    assert found(turn(), observation(1), turn(5), begun_under=5) == [(5, 4, 5)]


@given(
    sampled=st.lists(st.lists(st.integers(0, 2), max_size=4), max_size=5),
    queued=st.lists(st.booleans(), min_size=5, max_size=5),
)
def test_whatever_is_called_exact_was_sent_under_its_own_version(sampled, queued):
    """Simulate an engine: versions only grow, and a turn may be sent under an older one than it begins under."""
    version, turns, sent_under = 0, [], []
    for steps, waits in zip(sampled, queued, strict=False):
        sent_under.append(version)
        versions = []
        for i, step in enumerate(steps):
            version += step if i or waits else 0
            versions.append(version)
        turns.append(turn(*versions))
    starts = [3 + sum(len(t.ids) for t in turns[:i]) for i in range(len(turns))]
    spans = exact_spans(trajectory(*turns), begun_under=0)
    for span in spans:
        number = max(i for i, start in enumerate(starts) if start == span.start and len(turns[i].ids))
        assert sent_under[number] == span.version
        assert {s.version for s in turns[number].versions} == {span.version}


def test_rows_say_which_of_their_tokens_are_exact():
    members = (trajectory(turn(4, 5), observation(1), turn(5)), trajectory(turn(5)))
    group = Group(task=Task(query="q"), trajectories=members, rewards=(1.0, 0.0))
    assert [row.exact for row in rows_of([group], temperature=1.0, begun_under=4)] == [
        (VersionSpan(version=5, start=6, end=7),),
        (),
    ]


def test_sums_of_several_processes_and_micro_batches_weigh_every_token_alike():
    first, second = Gap(), Gap()
    first.add(torch.tensor([0.0, 0.0, 0.3]), torch.tensor([0.3]))
    first.add(torch.tensor([]), torch.tensor([]))
    second.add(torch.tensor([-0.1]), torch.tensor([-0.1, 0.0]))
    values = Gap.values([first.sums(), second.sums()])
    assert values["logprob_gap"] == pytest.approx(0.3)
    assert values["logprob_gap_mean"] == pytest.approx(0.4 / 3)
    assert values["logprob_gap_tokens"] == 3
    assert values["ratio_mean"] == pytest.approx((2 + 2.718281828**0.3 + 2.718281828**-0.1) / 4)
    assert Gap.values([first.sums()]) == {"logprob_gap_tokens": 0}  # every step begins anew


def step(number: int, *, tokens: int = 0, gap: float | None = None, trained: bool = True) -> StepMetrics:
    ratio = 1.0 if trained else None
    return StepMetrics(
        step=number, shots=0.0, reward=0.0, ratio_mean=ratio, logprob_gap_mean=gap, logprob_gap_tokens=tokens
    )


def test_a_run_that_compares_nothing_for_long_says_so_once():
    said: list[str] = []
    watch = GapWatch(0.1, said.append)
    watch.look(step(0, tokens=5, gap=0.01))
    for number in range(1, UNWATCHED):
        watch.look(step(number))
    watch.look(step(50, trained=False))  # nothing was trained: nothing went wrong either
    assert said == []
    watch.look(step(51, tokens=1, gap=0.0))
    for number in range(3 * UNWATCHED):
        watch.look(step(number))
    assert len(said) == 1
    assert f"in the last {UNWATCHED} steps" in said[0]


def test_a_gap_above_the_bound_stops_the_run_unless_there_is_none():
    with pytest.raises(WeightSyncError, match=r"step 3: .* by 0\.2 nats a token .* of 7 tokens"):
        GapWatch(0.1, print).look(step(3, tokens=7, gap=0.2))
    with pytest.raises(WeightSyncError, match="by nan nats"):
        GapWatch(0.1, print).look(step(3, tokens=7, gap=float("nan")))
    GapWatch(None, print).look(step(3, tokens=7, gap=0.2))
