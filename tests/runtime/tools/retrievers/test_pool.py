from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from watched import until

from icrl.errors import ConfigError, DataError, ToolUnavailable
from icrl.runtime.tools.corpus import Hit
from icrl.runtime.tools.index import Bm25Index
from icrl.runtime.tools.retrievers import pool
from icrl.runtime.tools.retrievers.pool import PoolRetriever
from icrl.runtime.workers import RemoteError


@pytest.fixture
async def make(facts_index) -> AsyncIterator[Callable[..., PoolRetriever]]:
    """Make retrievers that the test's end closes."""
    made: list[PoolRetriever] = []

    def factory(directory: Path = facts_index, **options: Any) -> PoolRetriever:
        made.append(PoolRetriever(directory, fingerprint="facts", **options))
        return made[-1]

    yield factory
    for retriever in made:
        await retriever.aclose()
    assert not children()


def children() -> set[int]:
    listed = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    return {int(child) for path in listed for child in path.read_text().split()}


@pytest.fixture
def index(facts_index) -> Bm25Index:
    return Bm25Index.open(facts_index)


async def test_it_answers_as_the_index_does(make, facts, index):
    queries = [f"{a} of {e}" for a, e, _ in facts[:60]]
    retriever = make(processes=2)
    assert await retriever.search(queries, 3) == index.search(queries, 3)
    singly = await asyncio.gather(*(retriever.search([query], k) for query in queries for k in (1, 4)))
    assert singly == [index.search([query], k) for query in queries for k in (1, 4)]
    assert 1 <= len(children()) <= 2  # the second starts while the first answers, and may be late
    assert retriever.fingerprint == "facts"
    with pytest.raises(ConfigError, match="k: must be >= 1"):
        await retriever.search(["code"], 0)


async def test_a_reader_that_is_killed_costs_no_answer(make, facts):
    retriever = make(processes=1)
    await retriever.search(["code"], 1)
    (reader,) = children()
    os.kill(reader, signal.SIGKILL)
    attribute, entity, value = facts[0]
    found = await asyncio.gather(*(retriever.search([f"{attribute} {entity}"], 2) for _ in range(5)))
    assert all(any(value in hit.text for hit in hits) for ((hits),) in found)


async def test_an_index_that_cannot_be_opened_is_named(make, tmp_path):
    with pytest.raises(DataError, match=r"is not a search index, index\.json is missing"):
        await make(tmp_path).search(["code"], 1)


@pytest.fixture
def touchy(make, tmp_path, monkeypatch, request) -> PoolRetriever:
    """An index some of whose words end the process, or hang."""
    monkeypatch.setattr(pool, "FACTORY", "worker_functions:touchy_index")
    return make(tmp_path, processes=1, timeout_s=getattr(request, "param", 30.0))


@pytest.mark.parametrize(
    ("touchy", "word", "reason"),
    [(30.0, "crash", "exit code 1"), (2.0, "hang", r"no answer within 2 s")],
    indirect=["touchy"],
)
async def test_a_query_that_ends_its_reader_spoils_no_other(touchy, word, reason):
    found = await asyncio.gather(
        *(touchy.search([query], 1) for query in ["a", word, "b"]), touchy.search(["c", "d"], 2), return_exceptions=True
    )
    assert isinstance(found[1], ToolUnavailable)
    with pytest.raises(ToolUnavailable, match=f"the search index did not answer .*{reason}"):
        raise found[1]
    texts = [[[hit.text for hit in hits] for hits in lists] for i, lists in enumerate(found) if i != 1]
    assert texts == [[["a"]], [["b"]], [["c", "c"], ["d", "d"]]]


async def test_queries_that_wait_are_searched_together(touchy, tmp_path):
    await asyncio.gather(*(touchy.search(["a", "b"], 1) for _ in range(7)))
    assert (tmp_path / "rounds").read_text().split() == ["14"]


async def test_what_the_index_raises_is_raised(touchy):
    with pytest.raises(RemoteError, match="KeyError: 'raise'"):
        await touchy.search(["raise"], 1)


async def test_a_search_that_nobody_waits_for_ends_its_reader(touchy, tmp_path):
    task = asyncio.create_task(touchy.search(["hang"], 1))
    await until((tmp_path / "hanging").exists)
    (reader,) = children()
    task.cancel()
    await until(lambda: reader not in children())
    assert (await touchy.search(["a"], 1))[0][0].text == "a"


def test_it_serves_one_loop_after_another(facts_index):
    retriever = PoolRetriever(facts_index, fingerprint="facts", processes=1)

    async def ask() -> list[list[Hit]]:
        return await retriever.search(["code of nothing"], 1)

    async def cut_off() -> None:
        asyncio.create_task(ask())  # noqa: RUF006
        await asyncio.sleep(0)

    found = asyncio.run(ask())
    asyncio.run(cut_off())
    assert asyncio.run(ask()) == found
    asyncio.run(retriever.aclose())
    assert not children()
