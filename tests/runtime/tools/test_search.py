from __future__ import annotations

import asyncio
import json
import random
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from icrl.errors import ConfigError, ToolArgumentError
from icrl.runtime.tools.index import Bm25Index, build_index
from icrl.runtime.tools.search import Bm25Retriever, Hit, SearchTool
from icrl.runtime.tools.tool import Tool
from icrl.runtime.tools.toolbox import Toolbox
from icrl.types import ToolCall

SYLLABLES = ("ba", "ri", "ko", "nu", "ve", "da", "so", "mi", "ta", "le")
ATTRIBUTES = ("code", "mayor", "partner", "colour", "river", "founder", "capital", "motto")


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> tuple[Path, list[tuple[str, str, str]]]:
    """A corpus with the shape of the embedded one: 400 names, 4 one-sentence facts each."""
    chance = random.Random(0)
    names = chance.sample([a + b + c for a in SYLLABLES for b in SYLLABLES for c in SYLLABLES], 400)
    facts = [
        (attribute, name.title(), str(chance.randrange(100, 1000)))
        for name in names
        for attribute in chance.sample(ATTRIBUTES, 4)
    ]
    chance.shuffle(facts)
    folder = tmp_path_factory.mktemp("world")
    lines = (json.dumps({"text": f"The {a} of {e} is {v}."}) for a, e, v in facts)
    (folder / "corpus.jsonl").write_text("\n".join(lines))
    build_index(folder / "corpus.jsonl", folder / "index", show_progress=False)
    return folder / "index", facts


@pytest.fixture
def index(world) -> Bm25Index:
    return Bm25Index.open(world[0])


def test_every_fact_is_among_the_first_two(world, index):
    facts = world[1]
    found = index.search([f"{a} of {e}" for a, e, _ in facts], k=2)
    for (a, e, v), hits in zip(facts, found, strict=True):
        assert f"The {a} of {e} is {v}." in {hit.text for hit in hits}


async def test_retriever_answers_as_the_index_does(world, index):
    retriever = Bm25Retriever(index)
    queries = [f"{a} of {e}" for a, e, _ in world[1][:50]]
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
    retriever = Bm25Retriever(slow)  # type: ignore[arg-type]
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
    assert slow.threads == {"bm25_0"}
    for i, hits in enumerate(found):
        assert [[hit.text for hit in each] for each in hits] == [[f"q{i}"] * (i % 3 + 1), ["x"] * (i % 3 + 1)]
    await retriever.aclose()


async def test_failure_reaches_those_who_asked_and_the_next_round_works():
    slow = SlowIndex()
    slow.release.set()
    retriever = Bm25Retriever(slow)  # type: ignore[arg-type]
    with pytest.raises(OSError, match="disk gone"):
        await retriever.search(["broken"], 1)
    assert (await retriever.search(["fine"], 1))[0][0].text == "fine"
    with pytest.raises(ConfigError, match="k: must be >= 1"):
        await retriever.search(["fine"], 0)
    await retriever.aclose()


async def test_closing_ends_the_thread_and_a_later_search_starts_another(index):
    retriever = Bm25Retriever(index)
    await retriever.aclose()
    for _ in range(2):
        await retriever.search(["code"], 1)
        assert "bm25_0" in {thread.name for thread in threading.enumerate()}
        await retriever.aclose()
        assert "bm25_0" not in {thread.name for thread in threading.enumerate()}


def test_retriever_serves_two_event_loops_and_outlives_one_that_was_cut_off(index):
    slow = SlowIndex()
    retriever = Bm25Retriever(slow)  # type: ignore[arg-type]

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


class FixedRetriever:
    def __init__(self, *hits: tuple[str, str]) -> None:
        self.hits = [Hit(id=str(i), title=title, text=text, score=1.0) for i, (title, text) in enumerate(hits)]
        self.closed = False

    async def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        return [self.hits[:k] for _ in queries]

    async def aclose(self) -> None:
        self.closed = True


async def test_hits_are_shown_with_titles_and_separator():
    retriever = FixedRetriever(("Rikor", "Its code is 113."), ("", "Second."), ("", "Third."))
    assert await SearchTool(retriever, k=2)({"query": "x"}) == "Rikor\nIts code is 113.\nSecond."
    plain = SearchTool(FixedRetriever(("", "One is 1."), ("", "Two is 2.")), separator=" ")
    assert await plain({"query": "x"}) == "One is 1. Two is 2."


async def test_no_hit_is_said_in_words():
    assert await SearchTool(FixedRetriever())({"query": "x"}) == "no result."
    assert await SearchTool(FixedRetriever(), empty="nothing")({"query": "x"}) == "nothing"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"query": " \n"}, "argument 'query' is empty"),
        ({}, "missing argument 'query'"),
        ({"qeury": "x"}, "Did you mean 'query'"),
        ({"query": ["x"]}, "it must be string"),
    ],
)
async def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ToolArgumentError, match=message):
        await SearchTool(FixedRetriever())(arguments)


async def test_it_is_a_tool_with_one_required_string_and_closes_its_retriever():
    retriever = FixedRetriever()
    search = SearchTool(retriever, name="lookup", description="Look it up.")
    assert isinstance(search, Tool)
    assert (search.spec.name, search.spec.description) == ("lookup", "Look it up.")
    assert search.spec.parameters["required"] == ["query"]
    assert search.spec.parameters["properties"]["query"]["type"] == "string"
    await search.aclose()
    assert retriever.closed
    with pytest.raises(ConfigError, match="k: must be"):
        SearchTool(retriever, k=0)


async def test_search_through_a_toolbox(world, index):
    attribute, entity, value = world[1][0]
    toolbox = Toolbox([SearchTool(Bm25Retriever(index), k=2, separator=" ")])
    calls = [ToolCall(name="search", arguments={"query": f"{attribute} of {entity}"}) for _ in range(20)]
    results = await toolbox.run_all([*calls, ToolCall(name="search", arguments={"query": "zzz"})], deadline_s=5.0)
    hits = index.search([f"{attribute} of {entity}"], k=2)[0]
    assert {result.text for result in results[:20]} == {" ".join(hit.text for hit in hits)}
    assert f"The {attribute} of {entity} is {value}." in results[0].text
    assert results[20].text == "no result."
    await toolbox.aclose()
