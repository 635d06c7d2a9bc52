from __future__ import annotations

import pytest

from icrl.commands.index import main
from icrl.errors import ConfigError, DataError
from icrl.runtime.tools.index import Bm25Index
from icrl.runtime.tools.retrievers.opening import open_index


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.jsonl"
    path.write_text('{"text": "The code of Rikor is 113."}\n{"text": "The code of Balt is 7."}\n')
    return path


def test_an_index_is_built_and_the_next_command_printed(corpus, tmp_path, capsys):
    out = tmp_path / "an index"
    main([str(corpus), str(out)])
    shown = capsys.readouterr().out
    assert "2 documents indexed" in shown
    assert f"--index '{out}'" in shown
    (hits,) = Bm25Index.open(out).search(["rikor"], 1)
    assert hits[0].text == "The code of Rikor is 113."


def test_settings_reach_the_index(corpus, tmp_path, capsys):
    main([str(corpus), str(tmp_path / "out"), "--k1", "0.9", "--b", "0.4"])
    meta = Bm25Index.open(tmp_path / "out").meta
    assert (meta.k1, meta.b) == (0.9, 0.4)


def test_a_broken_line_is_named(corpus, tmp_path):
    corpus.write_text(corpus.read_text() + '{"text": \n')
    with pytest.raises(DataError, match=r"corpus\.jsonl:3: "):
        main([str(corpus), str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_a_directory_with_other_things_is_not_replaced(corpus, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="is not a search index"):
        main([str(corpus), str(out)])
    assert (out / "thesis.txt").read_text() == "years of work"


def test_a_place_that_cannot_be_written_is_refused(corpus):
    with pytest.raises(DataError, match="the index cannot be written"):
        main([str(corpus), "/sys/index"])


def test_shards_reach_the_index(corpus, tmp_path, capsys):
    main([str(corpus), str(tmp_path / "out"), "--shards", "2"])
    assert Bm25Index.open(tmp_path / "out").meta.shards == (1, 1)


@pytest.mark.parametrize(
    "options", [["--backend", "tantivy"], ["--backend", "dense", "--encoder", "encoders_of_a_user:letters"]]
)
def test_other_kinds_of_index_are_built(corpus, tmp_path, capsys, options):
    if "tantivy" in options:
        pytest.importorskip("tantivy")
    main([str(corpus), str(tmp_path / "out"), *options])
    (hits,) = open_index(tmp_path / "out").search(["balt"], 1)
    assert hits[0].text == "The code of Balt is 7."


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--backend", "tantivy", "--k1", "1"], "k1: is for --backend bm25, not tantivy"),
        (["--encoder", "x"], "encoder: is for --backend dense, not bm25"),
        (["--backend", "dense"], "encoder: --backend dense needs one"),
        (["--backend", "tantvy"], "tantvy"),
    ],
)
def test_options_of_other_kinds_are_refused(corpus, tmp_path, options, reason):
    with pytest.raises(ConfigError, match=reason):
        main([str(corpus), str(tmp_path / "out"), *options])
