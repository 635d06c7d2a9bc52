from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icrl.errors import ConfigError, DataError
from icrl.runtime.tools import bm25, building, documents, postings, vocabulary
from icrl.runtime.tools import index as module
from icrl.runtime.tools.index import Bm25Index, build_index
from icrl.runtime.tools.index_meta import sizes

FILES = [*vocabulary.FILES, *(f"0/{name}" for name in (*bm25.FILES, *documents.FILES))]

TEXTS = ["The code of Rikor is 113.", "The mayor of Rikor is Nubar.", "Größe und Übermut.", "!!"]


@pytest.fixture
def corpus(tmp_path) -> Path:
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return path


@pytest.fixture
def built(corpus, tmp_path) -> Path:
    build_index(corpus, tmp_path / "index", show_progress=False)
    return tmp_path / "index"


def test_index_describes_itself(corpus, tmp_path):
    meta = build_index(corpus, tmp_path / "index", k1=0.9, b=0.4, show_progress=False)
    assert (meta.documents, meta.words, meta.k1, meta.b) == (4, 11, 0.9, 0.4)
    assert meta.postings == 15
    assert meta.corpus_sha256 == hashlib.sha256(corpus.read_bytes()).hexdigest()
    assert Bm25Index.open(tmp_path / "index").meta == meta


def test_search_finds_in_order_and_leaves_out_what_does_not_fit(built):
    index = Bm25Index.open(built)
    first, second, third, none, blank = index.search(["mayor of Rikor", "rikor rikor", "ÜBERMUT", "xyz", ""], k=3)
    assert [hit.id for hit in first] == ["1", "0"]
    assert first[0].text == TEXTS[1]
    assert first[0].score > first[1].score > 0
    assert [hit.id for hit in second] == ["0", "1"]
    assert second == index.search(["rikor"], k=3)[0]
    assert [hit.text for hit in third] == [TEXTS[2]]
    assert none == blank == []
    assert index.search([], k=1) == []


def test_documents_are_read_from_disk_in_corpus_order(built):
    index = Bm25Index.open(built)
    assert len(index) == 4
    assert [index.document(position).text for position in range(4)] == TEXTS


def test_title_is_searched_too(tmp_path):
    (tmp_path / "c.jsonl").write_text('{"title": "Rikor", "text": "A town."}\n{"text": "Another town."}')
    build_index(tmp_path / "c.jsonl", tmp_path / "i", show_progress=False)
    (hits,) = Bm25Index.open(tmp_path / "i").search(["rikor"], k=2)
    assert [(hit.title, hit.text) for hit in hits] == [("Rikor", "A town.")]


def test_building_twice_gives_the_same_bytes(corpus, tmp_path):
    for name in ("a", "b"):
        build_index(corpus, tmp_path / name, show_progress=False)
    names = sizes(tmp_path / "a")
    assert len(names) == len(FILES) + 1
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_progress_is_drawn_on_standard_error_only(corpus, tmp_path, capsys):
    build_index(corpus, tmp_path / "index")
    captured = capsys.readouterr()
    assert captured.out == ""
    build_index(corpus, tmp_path / "index", show_progress=False)
    assert capsys.readouterr() == ("", "")


def test_index_is_replaced_while_an_open_one_goes_on(built, corpus, tmp_path):
    old = Bm25Index.open(built)
    corpus.write_text('{"text": "Only this."}')
    build_index(corpus, built, show_progress=False)
    assert len(Bm25Index.open(built)) == 1
    assert old.search(["mayor"], k=1)[0][0].text == TEXTS[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus.jsonl", "index"]


def test_failed_build_leaves_what_was_there(built, corpus, tmp_path):
    corpus.write_text('{"text": "fine"}\n{"text": broken}\n')
    with pytest.raises(DataError, match=r"corpus\.jsonl:2: "):
        build_index(corpus, built, show_progress=False)
    assert len(Bm25Index.open(built)) == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus.jsonl", "index"]


def test_interrupted_build_leaves_nothing(corpus, tmp_path, monkeypatch):
    def interrupt(*args: object, **kwargs: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "save_postings", interrupt)
    with pytest.raises(KeyboardInterrupt):
        build_index(corpus, tmp_path / "index", show_progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["corpus.jsonl"]


def test_builder_that_is_overtaken_replaces_the_other(corpus, tmp_path, monkeypatch):
    rename, overtaken = building.os.rename, []

    def race(source: Path, target: Path) -> None:
        if Path(target) == tmp_path / "index" and not overtaken:
            overtaken.append(True)
            build_index(corpus, target, show_progress=False)
        rename(source, target)

    monkeypatch.setattr(building.os, "rename", race)
    build_index(corpus, tmp_path / "index", show_progress=False)
    assert overtaken
    assert len(Bm25Index.open(tmp_path / "index")) == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus.jsonl", "index"]


@pytest.mark.parametrize(
    ("content", "reason"), [("", "no documents"), ("\n\n", "no documents"), ('{"text": "!"}', "no words")]
)
def test_corpus_without_content_is_refused(tmp_path, content, reason):
    (tmp_path / "c.jsonl").write_text(content)
    with pytest.raises(DataError, match=reason):
        build_index(tmp_path / "c.jsonl", tmp_path / "i", show_progress=False)
    assert not (tmp_path / "i").exists()


def test_other_directories_and_files_are_not_overwritten(corpus, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("years of work")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "index.json").write_text("[1]")
    (tmp_path / "file").touch()
    for name in ("home", "foreign", "file"):
        with pytest.raises(ConfigError, match="is not a search index; choose another directory"):
            build_index(corpus, tmp_path / name, show_progress=False)
    assert (tmp_path / "home" / "thesis.txt").exists()


def test_empty_directory_and_missing_parents_are_fine(corpus, tmp_path):
    (tmp_path / "empty").mkdir()
    for out in (tmp_path / "empty", tmp_path / "new" / "deep"):
        build_index(corpus, out, show_progress=False)
        assert len(Bm25Index.open(out)) == 4


def test_place_that_cannot_be_written_is_an_error_in_words(corpus):
    with pytest.raises(DataError, match="the index cannot be written"):
        build_index(corpus, Path("/proc/nowhere"), show_progress=False)


@pytest.mark.parametrize(("wrong", "field"), [({"k1": -1.0}, "k1"), ({"b": 1.5}, "b"), ({"k1": float("nan")}, "k1")])
def test_parameters_are_checked(corpus, tmp_path, wrong, field):
    with pytest.raises(ConfigError, match=f"{field}: must be"):
        build_index(corpus, tmp_path / "i", show_progress=False, **wrong)


def test_directory_that_is_no_index_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"index\.json is missing; `icrl index"):
        Bm25Index.open(tmp_path)


@pytest.mark.parametrize("name", FILES)
def test_missing_file_is_named(built, name):
    (built / name).unlink()
    with pytest.raises(DataError, match=f"damaged, {name} is missing; build it again with `icrl index`"):
        Bm25Index.open(built)


@pytest.mark.parametrize("name", FILES)
def test_truncated_file_is_noticed(built, name):
    path = built / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size - 3])
    with pytest.raises(DataError, match=f"damaged, {name} has [0-9]+ bytes instead of"):
        Bm25Index.open(built)


@pytest.mark.parametrize("name", ["words.npy", "0/offsets.npy", "0/starts.npy"])
def test_files_of_another_index_are_noticed(built, tmp_path, name):
    (tmp_path / "c.jsonl").write_text('{"text": "another corpus"}')
    build_index(tmp_path / "c.jsonl", tmp_path / "other", show_progress=False)
    shutil.copy(tmp_path / "other" / name, built / name)
    with pytest.raises(DataError, match="the index is damaged"):
        Bm25Index.open(built)
    # Even where the description was made to fit.
    stated = json.loads((built / "index.json").read_text())
    stated["files"][name] = (built / name).stat().st_size
    (built / "index.json").write_text(json.dumps(stated))
    with pytest.raises(DataError, match="the index is damaged"):
        Bm25Index.open(built)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"version": 1}, "version is 1, and this version reads 2; build the index again"),
        ({"tokenizer": "porter"}, "tokenizer is 'porter', and this version reads 'lower-words-1'"),
        ({"documents": "many"}, r"index\.json: IndexMeta: Expected `int`"),
        ({"extra": 1}, "unknown field `extra`"),
        ({"format": "icrl-tantivy"}, "format is 'icrl-tantivy', and this version reads 'icrl-bm25'"),
        ({"words": 3}, "11 words instead of 3"),
        ({"shards": [3]}, "4 documents in 0 instead of 3"),
    ],
)
def test_description_that_does_not_fit_is_refused(built, change, reason):
    path = built / "index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DataError, match=reason):
        Bm25Index.open(built)


@pytest.mark.parametrize("content", ["[1]", "{}", "no JSON"])
def test_description_of_something_else_is_refused(built, content):
    (built / "index.json").write_text(content)
    with pytest.raises(DataError, match="is not the description of a search index"):
        Bm25Index.open(built)


def test_k_is_checked(built):
    with pytest.raises(ConfigError, match="k: must be >= 1, not 0"):
        Bm25Index.open(built).search(["x"], k=0)


def test_nothing_is_held_in_memory_that_is_on_disk(built):
    (shard,) = Bm25Index.open(built)._shards
    ranker = shard.ranker
    assert all(not column.flags.owndata for column in (ranker.scores, ranker.documents, ranker.starts))


# ---- shards and memory


@st.composite
def corpora(draw: st.DrawFn) -> list[str]:
    word = st.sampled_from([*"abcdefgh", "ü", "code"])
    texts = draw(st.lists(st.lists(word, max_size=9).map(" ".join), min_size=1, max_size=25))
    return [*texts, "a code"]


@given(corpora(), st.integers(2, 30), st.sampled_from([3, 50, 4_000_000]))
@settings(max_examples=30, deadline=None)
def test_neither_shards_nor_runs_change_what_is_found(texts, shards, run_words):
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        folder = Path(name)
        (folder / "c").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        whole = build_index(folder / "c", folder / "whole", show_progress=False)
        patch.setattr(postings, "RUN_WORDS", run_words)
        cut = build_index(folder / "c", folder / "cut", shards=shards, show_progress=False)
        queries = ["a", "code ü", "b c d e", "nothing", "h a code"]
        for k in (1, 3, 40):
            found = Bm25Index.open(folder / "whole").search(queries, k)
            assert Bm25Index.open(folder / "cut").search(queries, k) == found
        assert (sum(cut.shards), cut.words, cut.postings) == (whole.documents, whole.words, whole.postings)
        assert 1 <= len(cut.shards) <= min(shards, len(texts))
        assert min(cut.shards) >= 1
        assert cut.fingerprint == whole.fingerprint
        everything = Bm25Index.open(folder / "cut")
        assert [everything.document(position).text for position in range(len(texts))] == texts


def test_shards_are_of_about_equal_size(tmp_path):
    (tmp_path / "c").write_text("".join(json.dumps({"text": f"word{i:03} and more"}) + "\n" for i in range(100)))
    meta = build_index(tmp_path / "c", tmp_path / "i", shards=4, show_progress=False)
    assert meta.shards == (25, 25, 25, 25)
    with pytest.raises(ConfigError, match="shards: must be >= 1, not 0"):
        build_index(tmp_path / "c", tmp_path / "i", shards=0, show_progress=False)


def test_runs_are_removed(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(postings, "RUN_WORDS", 1)
    build_index(corpus, tmp_path / "index", show_progress=False)
    assert sorted(sizes(tmp_path / "index")) == sorted([*FILES, "index.json"])


def test_fingerprint_is_that_of_corpus_and_ranking(corpus, tmp_path):
    first = build_index(corpus, tmp_path / "i", show_progress=False).fingerprint
    assert build_index(corpus, tmp_path / "i", show_progress=False).fingerprint == first
    assert build_index(corpus, tmp_path / "i", k1=0.9, show_progress=False).fingerprint != first
    assert build_index(corpus, tmp_path / "i", b=0.4, show_progress=False).fingerprint != first
    corpus.write_text(corpus.read_text() + "\n")
    assert build_index(corpus, tmp_path / "i", show_progress=False).fingerprint != first
    assert len(first) == 32
