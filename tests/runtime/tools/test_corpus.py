from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icrl.errors import DataError
from icrl.runtime.tools.corpus import Document, read_corpus, words


def read(tmp_path: Path, content: str | bytes) -> list[Document]:
    path = tmp_path / "corpus.jsonl"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return list(read_corpus(path, on_line=len))


def test_documents_in_both_spellings(tmp_path):
    documents = read(
        tmp_path,
        '{"text": "alone"}\n'
        "\n"
        '{"id": 7, "title": "T", "text": "titled", "source": "ignored"}\n'
        '{"id": "w1", "contents": "\\"Rikor\\"\\nIts code is 113.\\nMore."}\n'
        '{"contents": "one line"}',
    )
    assert documents == [
        Document(id="0", title="", text="alone"),
        Document(id="7", title="T", text="titled"),
        Document(id="w1", title="Rikor", text="Its code is 113.\nMore."),
        Document(id="3", title="", text="one line"),
    ]
    assert [document.searchable for document in documents[:2]] == ["alone", "T\ntitled"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"text": "a"', "Input data was truncated"),
        ('{"text": 3}', r"Expected `str \| null`, got `int` - at `\$\.text`"),
        ('["text"]', "Expected `object`, got `array`"),
        ('{"txt": "a", "id": 1}', r"has neither 'text' nor 'contents' \(its fields: 'txt', 'id'\)"),
        ("{}", r"\(its fields: none\)"),
        (b'{"text": "\xff"}', "can't decode byte 0xff"),
        ('{"text": "\\ud800"}', "line|data|surrogate"),
    ],
)
def test_broken_line_is_named(tmp_path, line, reason):
    line = line if isinstance(line, bytes) else line.encode()
    with pytest.raises(DataError, match=reason) as caught:
        read(tmp_path, b'{"text": "good"}\n\n' + line + b"\n")
    assert "corpus.jsonl:3: " in str(caught.value)


def test_missing_file_is_named_with_its_neighbour(tmp_path):
    (tmp_path / "corpus.jsonl").touch()
    with pytest.raises(DataError, match=r"corpis\.jsonl: cannot be read .*Did you mean 'corpus\.jsonl'"):
        list(read_corpus(tmp_path / "corpis.jsonl", on_line=len))
    with pytest.raises(DataError, match="cannot be read"):
        list(read_corpus(tmp_path, on_line=len))


def test_every_line_is_shown_as_it_is(tmp_path):
    path, lines = tmp_path / "c.jsonl", []
    path.write_bytes(b'{"text": "a"}\r\n\n{"text": "b"}')
    list(read_corpus(path, on_line=lines.append))
    assert b"".join(lines) == path.read_bytes()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The code of Rikor is 113.", ["the", "code", "of", "rikor", "is", "113"]),
        ("Größe, 你好! naïve_x", ["größe", "你好", "naïve_x"]),
        (" .,;- ", []),
    ],
)
def test_words(text, expected):
    assert words(text) == expected


@given(st.text(max_size=30), st.text(max_size=30))
def test_words_are_those_of_the_parts(left, right):
    assert words(f"{left}\n{right}") == words(left) + words(right)
