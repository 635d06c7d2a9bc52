from __future__ import annotations

import math
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from icrl.errors import MissingExtraError
from icrl.runtime.tools import bm25
from icrl.runtime.tools.postings import Collector, Statistics, save_postings

Corpus = list[list[int]]


def lucene(documents: Corpus, query: list[int], k1: float, b: float) -> list[float]:
    """Score every document by the formula, in double precision."""
    mean = sum(map(len, documents)) / len(documents)
    scores = []
    for document in documents:
        counts, score = Counter(document), 0.0
        for word in query:
            holders = sum(word in other for other in documents)
            idf = math.log(1 + (len(documents) - holders + 0.5) / (holders + 0.5))
            score += idf * counts[word] / (counts[word] + k1 * (1 - b + b * len(document) / mean))
        scores.append(score)
    return scores


def open_ranker(documents: Corpus, words: int, k1: float = 1.2, b: float = 0.75) -> bm25.Ranker:
    with tempfile.TemporaryDirectory() as name:
        collector = Collector(Path(name))
        for document in documents:
            collector.add(document)
        collector.flush()
        statistics = Statistics.of([collector], [f"{word:03}" for word in range(words)], k1=k1, b=b)
        save_postings(Path(name), bm25.FILES, collector, statistics)
        return bm25.open_ranker(Path(name), len(documents), words)


@st.composite
def corpora(draw: st.DrawFn) -> tuple[Corpus, int]:
    words = draw(st.integers(1, 8))
    documents = draw(st.lists(st.lists(st.integers(0, words - 1), max_size=8), min_size=1, max_size=12))
    return [[*documents[0], 0], *documents[1:]], words


@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=60, deadline=None)
@given(
    corpora(), st.sets(st.integers(0, 7), min_size=1), st.integers(1, 14), st.sampled_from([(1.2, 0.75), (0.9, 0.4)])
)
def test_ranking_is_the_formula_with_ties_in_document_order(corpus, wanted, k, parameters):
    documents, words = corpus
    query = sorted(word for word in wanted if word < words) or [0]
    expected = lucene(documents, query, *parameters)
    (found,) = open_ranker(documents, words, *parameters).top([query], k)
    for document, score in found:
        assert score == pytest.approx(expected[document], abs=1e-5)
        assert score > 0
    assert len(found) == min(k, sum(score > 0 for score in expected))
    assert found == sorted(found, key=lambda pair: (-pair[1], pair[0]))
    worst = found[-1][1] if found else 0.0
    left_out = [score for document, score in enumerate(expected) if document not in dict(found)]
    assert all(score <= worst + 1e-5 for score in left_out)


def test_of_equal_documents_the_earlier_wins():
    documents = [[1], *([[0, 1]] * 30)]
    ranker = open_ranker(documents, 2)
    assert [document for document, _ in ranker.top([[0]], 4)[0]] == [1, 2, 3, 4]


@pytest.fixture
def compiled(monkeypatch):
    """Use the large-index path whatever the size; it compiles for seconds, the first time on a machine."""
    monkeypatch.setattr(bm25, "NUMPY_LIMIT", 0)


def test_compiled_code_and_numpy_give_the_same_bits(compiled, monkeypatch):
    random = np.random.default_rng(0)
    documents = [random.integers(0, 40, size=random.integers(0, 12)).tolist() for _ in range(300)]
    documents[0] = list(range(40))
    queries = [sorted(set(random.integers(0, 40, size=3).tolist())) for _ in range(50)]
    fast = open_ranker(documents, 40)
    monkeypatch.undo()
    plain = open_ranker(documents, 40)
    assert isinstance(fast, bm25.CompiledRanker)
    assert isinstance(plain, bm25.NumpyRanker)
    for k in (1, 5, 1000):
        assert fast.top(queries, k) == plain.top(queries, k)
    assert not fast.totals.any()
    assert fast.top([], 3) == []


def test_compiled_code_keeps_the_earlier_of_equal_documents(compiled):
    ranker = open_ranker([[0, 1]] * 9, 2)
    assert [document for document, _ in ranker.top([[0]], 3)[0]] == [0, 1, 2]
    # The first word finds the later documents first.
    ranker = open_ranker([[1], [0], [1], [0]], 2)
    assert [document for document, _ in ranker.top([[0, 1]], 2)[0]] == [0, 1]


@given(corpora(), st.sets(st.integers(0, 7), min_size=1), st.integers(1, 14))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_both_rankers_agree_on_any_corpus(compiled, corpus, wanted, k):
    documents, words = corpus
    query = sorted(word for word in wanted if word < words) or [0]
    fast = open_ranker(documents, words)
    plain = bm25.NumpyRanker(scores=fast.scores, documents=fast.documents, starts=fast.starts, count=len(documents))
    assert fast.top([query], k) == plain.top([query], k)


def test_missing_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "numpy", None)
    with pytest.raises(MissingExtraError, match=r"numpy is not installed; run: pip install 'icrl\[search\]'"):
        bm25.open_ranker(tmp_path, 1, 1)
