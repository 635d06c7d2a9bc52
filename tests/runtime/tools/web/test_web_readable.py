from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icrl.runtime.tools.web.readable import make_extractor, strip_tags


@pytest.fixture(scope="module")
def extract():
    return make_extractor()


def test_xml_declarations_and_declared_charsets_do_not_matter(extract):
    page = '<?xml version="1.0" encoding="utf-16"?><html><head><meta charset="latin-1"><title>Größe</title></head>'
    assert extract(f"{page}<body><p>Größe und Übermut, sagt man dort.</p></body></html>") == (
        "Größe",
        "Größe und Übermut, sagt man dort.",
    )


@pytest.mark.parametrize("page", ["", " ", "<", "<html>", "\0", "<!--", "<div>" * 1000, "<title>"])
def test_pages_without_text(extract, page):
    assert extract(page)[1] == ""


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("a < b", "a"),
        ("<p>a<p>b", "a\nb"),
        ("<script>if (a<b) { '</p>' }</script>c", "c"),
        ("<STYLE>p</Style >c", "c"),
        ("<script>never closed", ""),
        ("</script>text", "text"),
        ("a<br/>b<br>c", "a\nb\nc"),
        ("&lt;b&gt; &amp; &nbsp;x", "<b> & x"),
        ("<!-- hidden -->shown", "shown"),
        ("<b>in</b>line", "inline"),
    ],
)
def test_strip_tags(html, text):
    assert strip_tags(html) == text


@given(st.lists(st.sampled_from(["<", ">", "</", "script", "p", " ", "x", "&", "\n", "<style>"]), max_size=30))
def test_stripping_never_fails_and_never_invents(parts):
    html = "".join(parts)
    assert set(strip_tags(html)) <= {*html, "\n"}  # a paragraph begins a line


def test_stripping_takes_linear_time():
    started = time.process_time()
    for hostile in ("<" * 1_000_000, "<p" * 500_000, "<script>" * 100_000, "&" * 1_000_000, "<!--" * 250_000):
        strip_tags(hostile)
    assert time.process_time() - started < 3.0
