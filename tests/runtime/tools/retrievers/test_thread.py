from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest

from icrl.errors import ConfigError
from icrl.runtime.tools.corpus import Hit
from icrl.runtime.tools.index import Bm25Index
from icrl.runtime.tools.retrievers.thread import ThreadRetriever


@pytest.fixture
def index(facts_index) -> Bm25Index:
    return Bm25Index.open(facts_index)


def test_every_fact_is_among_the_first_two(facts, index):
    found = index.search([f"{a} of {e}" for a, e, _ in facts], k=2)
    for (a, e, v), hits in zip(facts, found, strict=True):
        assert f"The {a} of {e} is {v}." in {hit.text for hit in hits}


async def test_retriever_answers_as_the_index_does(facts, index):
    retriever = ThreadRetriever(index)
    queries = [f"{a} of {e}" for a, e, _ in facts[:50]]
    assert await retriever.search(queries, 3) == index.search(queries, 3)
    singly = await asyncio.gather(*(retriever.search([query], k) for query in queries for k in (1, 4)))
    assert singly == [index.search([query], k) for query in queries for k in (1, 4)]
    await retriever.aclose()


class SlowIndex:
    """Counts rounds, and holds the first one until told."""

    def __init__(self) -> None:
        self.rounds: list[int] = []
        self.threads: set[str] = set()
        self.started, self.release = threading.Event(), threading.Event()

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        self.rounds.append(len(queries))
        self.threads.add(threading.current_thread().name)
        self.started.set()
        self.release.wait(5)
        if "broken" in queries:
            raise OSError("disk gone")
        return [[Hit(id=query, title="", text=query, score=1.0)] * k for query in queries]


async def until(condition: threading.Event) -> None:
    while not condition.is_set():  # noqa: ASYNC110
        await asyncio.sleep(0.001)


async def test_queries_that_queue_up_are_searched_in_one_round():
    slow = SlowIndex()
    retriever = ThreadRetriever(slow)  # type: ignore[arg-type]
    first = asyncio.create_task(retriever.search(["first"], 1))
    await until(slow.started)
    others = [asyncio.create_task(retriever.search([f"q{i}", "x"], i % 3 + 1)) for i in range(9)]
    dropped = asyncio.create_task(retriever.search(["dropped"], 1))
    await asyncio.sleep(0)
    dropped.cancel()
    await asyncio.sleep(0)
    slow.release.set()
    await first
    found = await asyncio.gather(*others)
    assert slow.rounds == [1, 18]
    assert slow.threads == {"search_0"}
    for i, hits in enumerate(found):
        assert [[hit.text for hit in each] for each in hits] == [[f"q{i}"] * (i % 3 + 1), ["x"] * (i % 3 + 1)]
    await retriever.aclose()


async def test_failure_reaches_those_who_asked_and_the_next_round_works():
    slow = SlowIndex()
    slow.release.set()
    retriever = ThreadRetriever(slow)  # type: ignore[arg-type]
    with pytest.raises(OSError, match="disk gone"):
        await retriever.search(["broken"], 1)
    assert (await retriever.search(["fine"], 1))[0][0].text == "fine"
    with pytest.raises(ConfigError, match="k: must be >= 1"):
        await retriever.search(["fine"], 0)
    await retriever.aclose()


async def test_closing_ends_the_thread_and_a_later_search_starts_another(index):
    retriever = ThreadRetriever(index)
    await retriever.aclose()
    for _ in range(2):
        await retriever.search(["code"], 1)
        assert "search_0" in {thread.name for thread in threading.enumerate()}
        await retriever.aclose()
        assert "search_0" not in {thread.name for thread in threading.enumerate()}


def test_retriever_serves_two_event_loops_and_outlives_one_that_was_cut_off(index):
    slow = SlowIndex()
    retriever = ThreadRetriever(slow)  # type: ignore[arg-type]

    async def cut_off() -> None:
        task = asyncio.create_task(retriever.search(["lost"], 1))
        await until(slow.started)
        task.cancel()

    async def ask() -> str:
        found = await retriever.search(["kept"], 1)
        await retriever.aclose()
        return found[0][0].text

    asyncio.run(cut_off())
    slow.release.set()
    assert asyncio.run(ask()) == "kept"
