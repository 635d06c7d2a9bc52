from __future__ import annotations

import math
import sys
import tempfile
from array import array
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from icrl.errors import MissingExtraError
from icrl.runtime.tools import bm25

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
        vocabulary = {str(word): word for word in range(words)}
        bm25.save_postings(Path(name), [array("i", d) for d in documents], vocabulary, k1=k1, b=b)
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
def numba(monkeypatch):
    """Use the large-index path whatever the size; it compiles for seconds, the first time on a machine."""
    monkeypatch.setattr(bm25, "NUMPY_LIMIT", 0)


def test_numba_and_numpy_give_the_same_bits(numba, monkeypatch):
    random = np.random.default_rng(0)
    documents = [random.integers(0, 40, size=random.integers(0, 12)).tolist() for _ in range(300)]
    documents[0] = list(range(40))
    queries = [sorted(set(random.integers(0, 40, size=3).tolist())) for _ in range(50)]
    compiled = open_ranker(documents, 40)
    monkeypatch.undo()
    plain = open_ranker(documents, 40)
    assert isinstance(compiled, bm25.NumbaRanker)
    assert isinstance(plain, bm25.NumpyRanker)
    for k in (1, 5, 1000):
        assert compiled.top(queries, k) == plain.top(queries, k)
    tied = open_ranker([[0, 1]] * 9, 2)
    assert [document for document, _ in tied.top([[0]], 3)[0]] == [0, 1, 2]
    assert compiled.top([], 3) == []


def test_postings_can_be_opened_with_bm25s_alone(tmp_path):
    import bm25s

    bm25.save_postings(tmp_path, [array("i", [0, 1]), array("i", [1])], {"a": 0, "b": 1}, k1=1.2, b=0.75)
    opened = bm25s.BM25.load(tmp_path, mmap=True)
    assert opened.vocab_dict == {"a": 0, "b": 1}
    assert (opened.k1, opened.method) == (1.2, "lucene")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(bm25.FILES)


def test_compiled_loop_that_is_kept_on_disk_exists():
    from bm25s.numba import retrieve_utils

    assert callable(retrieve_utils._retrieve_internal_jitted_serial.enable_caching)


def test_missing_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "bm25s", None)
    monkeypatch.setitem(sys.modules, "numpy", None)
    with pytest.raises(MissingExtraError, match=r"bm25s is not installed; run: pip install 'icrl\[search\]'"):
        bm25.save_postings(tmp_path, [array("i", [0])], {"a": 0}, k1=1.2, b=0.75)
    with pytest.raises(MissingExtraError, match=r"numpy is not installed; run: pip install 'icrl\[search\]'"):
        bm25.open_ranker(tmp_path, 1, 1)
