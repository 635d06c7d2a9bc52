"""Mathematics: what is equal, what is not, and hostile answers that are killed and counted."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import pytest
import pytest_asyncio
from judged import asked

from icrl.errors import ConfigError, DataError, MissingExtraError, RewardError
from icrl.runtime.workers import RemoteError, WorkerDied
from icrl.train.rewards import MathMatcher, Score, mathematics

pytest.importorskip("math_verify")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def maths():
    matcher = MathMatcher(processes=1, timeout_s=20.0)
    yield matcher
    await matcher.aclose()


EQUAL = [
    ("73", "073"),
    ("1000", "1,000"),
    ("0.1", "10%"),
    ("5", "x=5"),
    ("x=5", "5"),
    ("sqrt8", "2sqrt2"),
    (r"\sqrt{8}", "2√2"),
    ("{1,3}", "3,1"),
    ("(1,3)", "( 1 , 3 )"),
    (r"\frac{\pi}{2}", "pi/2"),
    ("1<x<2", "(1,2)"),
    ("7/2", r"3\frac12"),
    ("x^2+2x+1", "(x+1)^2"),
    ("2", r"\boxed{1}, no, \boxed{2}"),
    ("1/2", r"The answer is \boxed{0.5}."),
    (r"\text{Evelyn}", "Evelyn"),
    ("1e3", "1e3"),
]
DIFFERENT = [
    ("(1,3)", "(3,1)"),
    ("(1,2,3)", "(1,3,2)"),
    ("1/3", "0.3333"),
    ("(1,2)", "1<x<2"),
    ("1", r"\boxed{1}, no, \boxed{2}"),
    ("5", "5 or 7"),
    ("5", "$5$ or $7$"),
    ("x+1", "y+1"),
    ("5", "five"),
    ("5", "6"),
]


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(("gold", "answer"), EQUAL)
async def test_equal_answers(maths, gold, answer):
    assert await maths(answer, asked("99/98", gold)) == Score(total=1.0, components={"em": 1.0})


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(("gold", "answer"), DIFFERENT)
async def test_different_answers(maths, gold, answer):
    assert await maths(answer, asked(gold)) == Score(total=0.0, components={"em": 0.0})


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("gold", "answer", "flag"),
    [("5", "?!", "unreadable"), (r"\frac{", "5/7", "unreadable_gold"), ("5", "x" * 513, "too_long")],
)
async def test_what_gives_no_verdict_is_flagged(maths, gold, answer, flag):
    assert await maths(answer, asked(gold)) == Score(total=0.0, components={"em": 0.0, flag: 1.0})


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("nothing", [None, "", r"\boxed{}", " . "])
async def test_no_answer_is_wrong(maths, nothing):
    assert (await maths(nothing, asked("5"))).components == {"em": 0.0}


HOSTILE = [
    r"9^{9^{9^9}}",
    "(10^9)!",
    r"10^{10^{10}}",
    r"\frac{1}{" * 50 + "2" + "}" * 50,
    "7^{300000000}",
    "(" * 500,
]


def children() -> set[str]:
    """Process ids of our children, whichever thread started them."""
    return {
        child for thread in Path("/proc/self/task").iterdir() for child in (thread / "children").read_text().split()
    }


@pytest.mark.learning
async def test_hostile_answers_are_killed_at_the_deadline_counted_and_never_kept_waiting_for():
    before = children()
    matcher = MathMatcher(processes=1, timeout_s=20.0)
    try:
        assert (await matcher("0.5", asked("1/2"))).total == 1.0
        matcher._timeout_s = 0.4
        for answer in HOSTILE:
            cpu_s, started = os.times().children_user, time.monotonic()
            score = await matcher(answer, asked("5"))
            assert score == Score(total=0.0, components={"em": 0.0, "timeout": 1.0}), answer
            assert time.monotonic() - started < 30
            assert os.times().children_user - cpu_s < 10
        matcher._timeout_s = 20.0
        assert (await matcher("0.25", asked("1/4"))).total == 1.0
    finally:
        await matcher.aclose()
    assert children() <= before


async def test_a_hostile_neighbour_costs_the_others_no_time_of_theirs():
    matcher = MathMatcher(processes=1, timeout_s=2.0)
    try:
        answers = [r"9^{9^{9^9}}", r"9^{9^{9^8}}", "0.5", "2/4"]
        scores = await asyncio.gather(*(matcher(answer, asked("1/2")) for answer in answers))
    finally:
        await matcher.aclose()
    assert [score.components for score in scores] == [{"em": 0.0, "timeout": 1.0}] * 2 + [{"em": 1.0}] * 2


class FakeWorkers:
    """Stands in for the processes; says or raises what it is told, the proof first."""

    def __init__(self, *replies):
        self.replies = list(replies)
        self.asked = []
        self.closed = 0

    async def run(self, request, *, timeout_s):
        self.asked.append((request, timeout_s))
        reply = self.replies.pop(0)
        if isinstance(reply, Exception):
            raise reply
        return reply

    async def aclose(self):
        self.closed += 1


def faked(monkeypatch, *replies) -> tuple[MathMatcher, FakeWorkers]:
    workers = FakeWorkers(*replies)
    monkeypatch.setattr(mathematics, "Workers", lambda *_, **__: workers)
    return MathMatcher(processes=1, timeout_s=3.0), workers


@pytest.mark.parametrize("failure", [WorkerDied("gone"), RemoteError("MemoryError", "")])
async def test_a_process_that_dies_is_flagged_and_its_successor_proves_itself(monkeypatch, failure):
    matcher, workers = faked(monkeypatch, "equal", failure, "equal", "different", "equal")
    scores = [(await matcher("1/3", asked("2/7"))).components for _ in range(3)]
    assert scores == [{"em": 0.0, "crashed": 1.0}, {"em": 0.0}, {"em": 1.0}]
    assert [timeout_s for _, timeout_s in workers.asked] == [mathematics.START_TIMEOUT_S, 3.0] * 2 + [3.0]


@pytest.mark.parametrize("proof", ["different", TimeoutError(), WorkerDied("gone"), RemoteError("ImportError", "no")])
async def test_verification_that_does_not_work_at_all_is_an_error_and_not_a_wrong_answer(monkeypatch, proof):
    matcher, _ = faked(monkeypatch, proof)
    with pytest.raises(RewardError, match="math"):
        await matcher("1/3", asked("2/7"))


async def test_the_gold_comes_first_and_all_golds_go_together(monkeypatch):
    matcher, workers = faked(monkeypatch, "equal", "equal")
    await matcher(r"\boxed{(1,2)}", asked("1<x<2", "$y$"))
    assert workers.asked[1][0] == (["1<x<2", "y"], "(1,2)")


async def test_whole_numbers_and_equal_texts_need_no_process(monkeypatch):
    matcher, workers = faked(monkeypatch)
    for answer, gold, em in [("073", "73", 1.0), ("74", "73", 0.0), ("9^{9^9}", "9^{ 9^9 }", 1.0), (None, "73", 0.0)]:
        assert (await matcher(answer, asked(gold))).total == em
    assert workers.asked == []


async def test_closing_closes_the_processes(monkeypatch):
    matcher, workers = faked(monkeypatch)
    await matcher.aclose()
    assert workers.closed == 1


async def test_empty_golds_are_refused(monkeypatch):
    matcher, _ = faked(monkeypatch)
    with pytest.raises(DataError, match="answers: one is empty"):
        await matcher("5", asked("5.0", " "))


@pytest.mark.parametrize(("field", "value"), [("processes", 0), ("timeout_s", 0.0)])
def test_settings_are_checked(field, value):
    with pytest.raises(ConfigError, match=f"{field}: must be >"):
        MathMatcher(**{field: value})


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"icrl\[math\]"):
        MathMatcher()
