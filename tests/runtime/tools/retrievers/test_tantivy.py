from __future__ import annotations

import asyncio
import json
import shutil
import sys

import pytest

from icrl.errors import ConfigError, DataError, MissingExtraError
from icrl.runtime.tools.index import Bm25Index
from icrl.runtime.tools.retrievers.opening import open_retriever
from icrl.runtime.tools.retrievers.tantivy import TantivyIndex, build_tantivy_index

pytest.importorskip("tantivy")


@pytest.fixture(scope="module")
def directory(facts_corpus):
    build_tantivy_index(facts_corpus, facts_corpus.with_name("tantivy"), writer_mb=20, show_progress=False)
    return facts_corpus.with_name("tantivy")


def test_it_finds_what_bm25_finds(directory, facts, facts_index):
    queries = [f"{a} of {e}" for a, e, _ in facts[:100]]
    ours, theirs = Bm25Index.open(facts_index).search(queries, 2), TantivyIndex.open(directory).search(queries, 2)
    for (a, e, v), one, other in zip(facts, ours, theirs, strict=False):
        assert f"The {a} of {e} is {v}." in {hit.text for hit in other}
        assert one[0].id == other[0].id
    assert len(TantivyIndex.open(directory)) == len(facts)


def test_operators_are_words_and_nothing_is_nothing(directory):
    index = TantivyIndex.open(directory)
    assert index.search(["", "AND OR", '"', "body:* -code^9999 (", "zzz"], 2)[:2] == [[], []]
    assert index.search(['code"'], 1) == index.search(["CODE code"], 1)
    with pytest.raises(ConfigError, match="k: must be >= 1"):
        index.search(["code"], 0)


def test_titles_ids_and_large_numbers_of_documents_survive(tmp_path):
    lines = [{"id": f"d{i}", "title": f"T{i}", "text": f"word{i} common"} for i in range(300)]
    (tmp_path / "c").write_text("\n".join(map(json.dumps, lines)))
    build_tantivy_index(tmp_path / "c", tmp_path / "i", writer_mb=20, show_progress=False)
    ((hit,), most) = TantivyIndex.open(tmp_path / "i").search(["word299", "common"], 500)
    assert (hit.id, hit.title, hit.text) == ("d299", "T299", "word299 common")
    assert len(most) == 300


async def test_it_is_opened_by_its_directory_in_a_thread_or_in_a_process(directory, facts):
    for processes in (None, 1):
        retriever = await open_in_thread(directory, processes)
        ((hit, *_),) = await retriever.search([f"{facts[0][0]} of {facts[0][1]}"], 1)
        assert facts[0][2] in hit.text
        assert len(retriever.fingerprint) == 32
        await retriever.aclose()


async def open_in_thread(directory, processes):
    return await asyncio.to_thread(open_retriever, directory, processes=processes)


def test_damage_is_noticed(directory, tmp_path, facts_corpus):
    copy = tmp_path / "copy"
    shutil.copytree(directory, copy)
    (copy / "tantivy" / "meta.json").write_text("{}")
    with pytest.raises(DataError, match="damaged"):
        TantivyIndex.open(copy)
    build_tantivy_index(facts_corpus, copy, writer_mb=20, show_progress=False)
    assert TantivyIndex.open(copy).fingerprint == TantivyIndex.open(directory).fingerprint


def test_the_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "tantivy", None)
    with pytest.raises(MissingExtraError, match=r"icrl\[tantivy\]"):
        build_tantivy_index(tmp_path / "c", tmp_path / "i")
