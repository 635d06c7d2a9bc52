from __future__ import annotations

import asyncio
import json

import pytest

from icrl.errors import ConfigError, DataError
from icrl.runtime.tools.index import Bm25Index, build_index
from icrl.runtime.tools.retrievers import opening
from icrl.runtime.tools.retrievers.opening import open_index, open_retriever
from icrl.runtime.tools.retrievers.pool import PoolRetriever
from icrl.runtime.tools.retrievers.remote import HttpRetriever
from icrl.runtime.tools.retrievers.thread import ThreadRetriever


@pytest.mark.parametrize(("limit", "processes", "kind"), [(10**6, None, ThreadRetriever), (10, None, PoolRetriever)])
def test_a_large_index_gets_processes(facts_index, monkeypatch, limit, processes, kind):
    monkeypatch.setattr(opening, "POOL_LIMIT", limit)
    assert type(open_retriever(facts_index)) is kind
    assert type(open_retriever(str(facts_index), processes=0)) is ThreadRetriever
    assert type(open_retriever(facts_index, processes=1)) is PoolRetriever


def test_all_ways_to_an_index_have_its_fingerprint(facts_index):
    index = Bm25Index.open(facts_index)
    for processes in (0, 1):
        assert open_retriever(facts_index, processes=processes).fingerprint == index.fingerprint


def test_a_sharded_index_is_an_index(facts_corpus, facts_index, tmp_path):
    build_index(facts_corpus, tmp_path / "cut", shards=5, show_progress=False)
    queries = ["code of baribe", "mayor", "the founder of nuvele is"]
    assert open_index(tmp_path / "cut").search(queries, 20) == open_index(facts_index).search(queries, 20)
    retriever = open_retriever(tmp_path / "cut", processes=1)
    assert retriever.fingerprint == open_retriever(facts_index).fingerprint

    async def ask() -> int:
        found = await retriever.search(queries, 20)
        await retriever.aclose()
        return sum(map(len, found))

    assert asyncio.run(ask()) == 60


def test_an_address_is_asked(monkeypatch):
    monkeypatch.setenv("ICRL_RETRIEVER_KEY", "from the environment")
    retriever = open_retriever("http://127.0.0.1:8001")
    assert isinstance(retriever, HttpRetriever)
    assert retriever._headers == {"Authorization": "Bearer from the environment"}
    assert open_retriever("http://h", api_key="given")._headers == {"Authorization": "Bearer given"}
    with pytest.raises(ConfigError, match="processes: 2 cannot be set for http://h"):
        open_retriever("http://h", processes=2)


def test_what_is_no_index_is_refused(facts_index, tmp_path):
    with pytest.raises(DataError, match=r"is not a search index, index\.json is missing; `icrl index` makes one"):
        open_retriever(tmp_path)
    (tmp_path / "index.json").write_text(json.dumps({"format": "icrl-something"}))
    with pytest.raises(DataError, match="holds an index of an unknown kind, 'icrl-something'"):
        open_retriever(tmp_path)
    with pytest.raises(ConfigError, match="processes: must be >= 0, not -1"):
        open_retriever(facts_index, processes=-1)
