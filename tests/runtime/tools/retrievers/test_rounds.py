from __future__ import annotations

import asyncio

import pytest
from watched import until

from icrl.errors import ConfigError
from icrl.runtime.tools.corpus import Hit
from icrl.runtime.tools.retrievers.rounds import Rounds


def hit(text: str) -> Hit:
    return Hit(id=text, title="", text=text, score=1.0)


class Source:
    """Remembers its rounds, and answers them when told."""

    def __init__(self) -> None:
        self.rounds: list[tuple[list[str], int]] = []
        self.open = asyncio.Event()
        self.cancelled = 0

    async def answer(self, queries: list[str], k: int) -> list[list[Hit] | BaseException]:
        self.rounds.append((queries, k))
        try:
            await self.open.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if "broken" in queries:
            raise OSError("disk gone")
        return [ValueError(query) if query == "bad" else [hit(query)] * k for query in queries]


async def test_what_is_asked_at_once_is_shared_out_and_what_waits_goes_together():
    source = Source()
    rounds = Rounds(source.answer, slots=2)
    first = [asyncio.create_task(rounds.search([f"a{i}"], i + 1)) for i in range(4)]
    await until(lambda: source.rounds)
    later = [asyncio.create_task(rounds.search([f"b{i}", "x"], 1)) for i in range(3)]
    await asyncio.sleep(0.01)
    assert source.rounds == [(["a0", "a1"], 2), (["a2", "a3"], 4)]
    source.open.set()
    assert await asyncio.gather(*first) == [[[hit(f"a{i}")] * (i + 1)] for i in range(4)]
    assert await asyncio.gather(*later) == [[[hit(f"b{i}")], [hit("x")]] for i in range(3)]
    assert sorted(len(queries) for queries, _ in source.rounds[2:]) in ([6], [2, 4])
    assert await rounds.search([], 3) == []
    with pytest.raises(ConfigError, match="k: must be >= 1"):
        await rounds.search(["x"], 0)


async def test_a_round_is_bounded_and_a_large_request_makes_its_own():
    source = Source()
    source.open.set()
    rounds = Rounds(source.answer, slots=1, max_queries=3)
    asked = (["a"], ["b", "c"], ["d"], ["e"] * 5, ["f"])
    await asyncio.gather(*(rounds.search(queries, 1) for queries in asked))
    assert [len(queries) for queries, _ in source.rounds] == [3, 1, 5, 1]


async def test_failures_reach_those_who_asked():
    source = Source()
    source.open.set()
    rounds = Rounds(source.answer, slots=1)
    for error in await asyncio.gather(*(rounds.search([q], 1) for q in ("broken", "a")), return_exceptions=True):
        assert isinstance(error, OSError)
    bad, good = await asyncio.gather(rounds.search(["a", "bad"], 1), rounds.search(["b"], 1), return_exceptions=True)
    assert isinstance(bad, ValueError)
    assert good == [[hit("b")]]


async def test_a_round_goes_on_as_long_as_somebody_waits():
    source = Source()
    rounds = Rounds(source.answer, slots=1)
    one, two = (asyncio.create_task(rounds.search([q], 1)) for q in "ab")
    await until(lambda: source.rounds)
    one.cancel()
    await asyncio.sleep(0.01)
    assert not source.cancelled
    two.cancel()
    await until(lambda: source.cancelled)
    source.open.set()
    assert await rounds.search(["c"], 1) == [[hit("c")]]


async def test_whoever_left_is_not_asked_for():
    source = Source()
    rounds = Rounds(source.answer, slots=1)
    tasks = [asyncio.create_task(rounds.search([q], 1)) for q in "abc"]
    await asyncio.sleep(0)
    tasks[1].cancel()
    await until(lambda: source.rounds)
    assert source.rounds == [(["a", "c"], 1)]
    await rounds.aclose()
    for task in tasks:
        with pytest.raises(asyncio.CancelledError):
            await task
    assert asyncio.all_tasks() == {asyncio.current_task()}
