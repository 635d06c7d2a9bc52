from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from icrl.errors import ConfigError, ToolArgumentError
from icrl.runtime.tools.index import Bm25Index
from icrl.runtime.tools.retrievers.thread import ThreadRetriever
from icrl.runtime.tools.search import Hit, SearchTool
from icrl.runtime.tools.tool import Tool, ToolPolicy
from icrl.runtime.tools.toolbox import Toolbox
from icrl.types import ToolCall


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


@pytest.fixture
def index(facts_index) -> Bm25Index:
    return Bm25Index.open(facts_index)


async def test_search_through_a_toolbox(facts, index):
    attribute, entity, value = facts[0]
    toolbox = Toolbox([SearchTool(ThreadRetriever(index), k=2, separator=" ")])
    queries = [*[f"{attribute} of {entity}"] * 20, "zzz"]
    calls = [ToolCall(name="search", arguments={"query": query}) for query in queries]
    results = await asyncio.gather(*(toolbox.run(call, deadline_s=5.0) for call in calls))
    hits = index.search([f"{attribute} of {entity}"], k=2)[0]
    assert {result.text for result in results[:20]} == {" ".join(hit.text for hit in hits)}
    assert f"The {attribute} of {entity} is {value}." in results[0].text
    assert results[20].text == "no result."
    await toolbox.aclose()


class Named(FixedRetriever):
    fingerprint = "corpus-1"


def test_what_it_shows_decides_its_fingerprint_and_a_nameless_corpus_is_not_cached():
    tool = SearchTool(Named(), k=2)
    assert tool.policy.repeatable
    assert tool.fingerprint == SearchTool(Named(), k=2, description="Other words.").fingerprint
    others = [SearchTool(Named(), k=3), SearchTool(Named(), k=2, separator=" "), SearchTool(Named(), k=2, empty="-")]
    other_corpus = Named()
    other_corpus.fingerprint = "corpus-2"
    others.append(SearchTool(other_corpus, k=2))
    assert len({tool.fingerprint, *(other.fingerprint for other in others)}) == 5
    assert not SearchTool(FixedRetriever()).policy.repeatable
    assert not SearchTool(Named(), policy=ToolPolicy(timeout_s=2.0)).policy.repeatable
