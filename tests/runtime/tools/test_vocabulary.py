from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icrl.runtime.tools.vocabulary import FILES, Vocabulary, write_vocabulary

WORDS = st.sets(st.text(st.characters(), min_size=1, max_size=5), min_size=1, max_size=30)


@given(WORDS, WORDS)
def test_words_are_numbered_in_their_order_and_others_are_unknown(known, asked):
    with tempfile.TemporaryDirectory() as name:
        write_vocabulary(Path(name), sorted(known))
        vocabulary = Vocabulary(Path(name))
    assert len(vocabulary) == len(known)
    assert [vocabulary.find(word) for word in sorted(known)] == list(range(len(known)))
    for word in asked - known:
        assert vocabulary.find(word) is None
    assert vocabulary.find("") is None


def test_a_lone_surrogate_can_be_asked_for(tmp_path):
    write_vocabulary(tmp_path, ["code"])
    assert Vocabulary(tmp_path).find("\ud800") is None


def test_files_that_do_not_fit_are_refused(tmp_path):
    write_vocabulary(tmp_path, ["code", "mayor"])
    (tmp_path / FILES[0]).write_bytes(b"codemay")
    with pytest.raises(ValueError, match="does not fit"):
        Vocabulary(tmp_path)
