from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from icrl.errors import ConfigError, DataError, MissingExtraError
from icrl.runtime.tools.retrievers import dense
from icrl.runtime.tools.retrievers.dense import DenseIndex, build_dense_index, open_encoder

ENCODER = "encoders_of_a_user:letters"


@pytest.fixture
def corpus(tmp_path) -> Path:
    lines = [{"id": word, "text": word} for word in ("aaaa", "abab", "bbbb", "cccc", "aabc")]
    (tmp_path / "c").write_text("\n".join(map(json.dumps, lines)))
    return tmp_path / "c"


@pytest.fixture
def built(corpus, tmp_path) -> Path:
    build_dense_index(corpus, tmp_path / "i", encoder=ENCODER, show_progress=False)
    return tmp_path / "i"


def test_the_nearest_come_first_with_their_cosines(built):
    index = DenseIndex.open(built)
    assert len(index) == 5
    first, second = index.search(["ba", "c"], 3)
    assert [hit.id for hit in first] == ["abab", "aabc", "aaaa"]
    assert [hit.score for hit in first] == pytest.approx([1.0, 3 / 12**0.5, 2**-0.5], abs=1e-6)
    assert second[0].text == "cccc"
    assert index.search([], 3) == []
    assert len(index.search(["a"], 50)[0]) == 5
    with pytest.raises(ConfigError, match="k: must be >= 1"):
        index.search(["a"], 0)


def test_prefixes_are_kept(corpus, tmp_path):
    options = {"query_prefix": "bbbbbbbb", "document_prefix": "a"}
    meta = build_dense_index(corpus, tmp_path / "i", encoder=ENCODER, show_progress=False, **options)
    assert (meta.query_prefix, meta.document_prefix, meta.dimensions) == ("bbbbbbbb", "a", 26)
    assert DenseIndex.open(tmp_path / "i").search(["a"], 1)[0][0].id == "bbbb"
    plain = build_dense_index(corpus, tmp_path / "i", encoder=ENCODER, show_progress=False)
    assert plain.fingerprint != meta.fingerprint


def test_a_graph_finds_the_nearest_too(tmp_path, monkeypatch):
    pytest.importorskip("hnswlib")
    random = np.random.default_rng(0)
    texts = ["".join(random.choice(list("abcdefgh"), size=20)) for _ in range(500)]
    (tmp_path / "c").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    build_dense_index(tmp_path / "c", tmp_path / "exact", encoder=ENCODER, show_progress=False)
    monkeypatch.setattr(dense, "EXACT_LIMIT", 1)
    monkeypatch.setattr(dense, "BATCH", 7)
    for name in ("graph", "again"):
        build_dense_index(tmp_path / "c", tmp_path / name, encoder=ENCODER, show_progress=False)
    exact, graph = (DenseIndex.open(tmp_path / name).search(texts[:50], 5) for name in ("exact", "graph"))
    agree = [len({hit.id for hit in a} & {hit.id for hit in b}) / 5 for a, b in zip(exact, graph, strict=True)]
    assert np.mean(agree) > 0.9
    assert [hits[0].score for hits in graph] == pytest.approx([1.0] * 50, abs=1e-5)
    assert (tmp_path / "graph" / "graph.bin").read_bytes() == (tmp_path / "again" / "graph.bin").read_bytes()


def test_vectors_without_direction_are_refused(corpus, tmp_path):
    with pytest.raises(DataError, match="zero or not finite"):
        build_dense_index(corpus, tmp_path / "i", encoder="encoders_of_a_user:nothing", show_progress=False)
    with pytest.raises(DataError, match=r"returned shape \(5,\)"):
        build_dense_index(corpus, tmp_path / "i", encoder="encoders_of_a_user:flat", show_progress=False)
    assert not (tmp_path / "i").exists()


def test_an_encoder_that_is_not_that_of_the_index_is_refused(built):
    stated = json.loads((built / "index.json").read_text())
    (built / "index.json").write_text(json.dumps(stated | {"encoder": "encoders_of_a_user:short"}))
    with pytest.raises(DataError, match=r"returned shape \(1, 2\)"):
        DenseIndex.open(built).search(["a"], 1)
    (built / "index.json").write_text(json.dumps(stated | {"dimensions": 3}))
    with pytest.raises(DataError, match=r"damaged \(vectors of shape \(5, 26\)"):
        DenseIndex.open(built)


def test_encoders_are_found_by_name(monkeypatch):
    assert open_encoder("math:pow")(2, 3) == 8
    with pytest.raises(ConfigError, match=r"encoder: math has no 'pwo'\. Did you mean 'pow'"):
        open_encoder("math:pwo")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"icrl\[dense\]"):
        open_encoder("all-MiniLM-L6-v2")


def test_a_model_of_sentence_transformers_is_loaded_by_its_name(corpus, tmp_path, monkeypatch):
    class SentenceTransformer:
        def __init__(self, name: str) -> None:
            if name != "right":
                raise OSError(f"{name} is not a model\nand much more")

        def encode(self, texts: Sequence[str], **options: object) -> np.ndarray:
            return np.array([[text.count("a") + 1.0, text.count("b") + 1.0] for text in texts])

    from types import SimpleNamespace

    monkeypatch.setattr("importlib.util.find_spec", lambda name: True)
    monkeypatch.setitem(sys.modules, "sentence_transformers", SimpleNamespace(SentenceTransformer=SentenceTransformer))
    build_dense_index(corpus, tmp_path / "i", encoder="right", show_progress=False)
    assert DenseIndex.open(tmp_path / "i").search(["aaaa"], 1)[0][0].id == "aaaa"
    with pytest.raises(ConfigError, match=r"encoder: 'wrong' cannot be loaded \(wrong is not a model\)"):
        open_encoder("wrong")
