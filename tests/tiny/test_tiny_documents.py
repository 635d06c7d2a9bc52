from __future__ import annotations

import re
from dataclasses import replace
from itertools import islice
from random import Random

import pytest

from icrl.tiny.documents import Mixture, clean, documents, draw_document
from icrl.tiny.pretrain import PHASES
from icrl.tiny.words import RESERVED

KINDS = ("episodes", "reading", "repeats", "pairs", "prose")


def only(kind: str, *, sums: float = 0.2) -> Mixture:
    return Mixture(**{k: float(k == kind) for k in KINDS}, records=(2, 5), sums=sums)


@pytest.fixture(scope="module")
def sample() -> list[str]:
    return [text for i, p in enumerate(PHASES) for text in islice(documents(Random(i), p.mixture), 3000)]


@pytest.mark.parametrize("word", RESERVED)
def test_pretraining_text_never_uses_a_reserved_word_as_a_tag(sample: list[str], word: str):
    tag = rf"""
        [<\[{{(/|`*#=]+ [ ]* {word} \b              # an opening mark, then the word: </ search
      | \b {word} [ ]* [>\]}})|`:=*]                # the word, then a closing mark or a label's colon
      | ^ [ ]* {word} [ ]* $                        # a heading of its own
    """
    pattern = re.compile(tag, re.VERBOSE | re.IGNORECASE | re.MULTILINE)
    assert [m[0] for text in sample if (m := pattern.search(text))] == []


def test_compound_reserved_words_never_occur(sample: list[str]):
    assert not any("tool_" in text or "tool call>" in text.lower() for text in sample)


def test_reserved_words_do_occur_as_ordinary_words(sample: list[str]):
    text = "\n".join(sample)
    missing = [w for w in RESERVED if "_" not in w and not re.search(rf"[a-z] {w} [a-z]", text)]
    assert missing == []


@pytest.mark.parametrize(
    "text",
    [
        *("<search>", "</search>", "< search >", "</ Search", "[answer]", "[/answer]", "{think} a {/think}"),
        *("## information\n", "Answer: 7", "answer : 7", "result = 7", "(code) x", "<<output>>", "[[python: 1]]"),
        *(
            "```python\n1\n```",
            "a\n  output \nb",
            "**Answer**",
            "search -> x",
            "tool_call",
            "<Interpreter",
        ),
    ],
)
def test_tags_labels_and_headings_are_refused(text: str):
    assert not clean(f"once upon {text} a time")


@pytest.mark.parametrize(
    "text",
    ["They think that Rikor will search.", "The code of Rikor is 113.", "<look> code of Rikor </look>", "research: 1"],
)
def test_ordinary_use_is_allowed(text: str):
    assert clean(text)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_follows_from_the_seed(kind: str):
    texts = [draw_document(Random(5), only(kind)) for _ in range(2)]
    assert texts[0] == texts[1] != ""


def test_choices_come_on_top_of_the_other_kinds():
    kinds = replace(only("prose"), choices=0.5)
    texts = list(islice(documents(Random(6), kinds), 200))
    assert 70 < sum("\n" in text for text in texts) < 130


def test_repeats_repeat():
    for text in islice(documents(Random(2), only("repeats")), 50):
        assert any(text.count(text[: len(text) // n - 1]) >= n for n in (2, 3, 4))


def test_pairs_come_again():
    for text in islice(documents(Random(3), only("pairs")), 50):
        entries = re.split(r"\n| ; |\. | , ", text)
        assert all(entries.count(e) in (2, 3) for e in entries)


def test_reading_answers_stand_in_the_text():
    for text in islice(documents(Random(4), only("reading")), 50):
        story, *lines = text.rstrip("\n").split("\n")
        answers = [line.split()[-1] for line in lines[1::2]]
        assert answers
        assert all(re.search(rf"\b{a}\b", story) for a in answers)


@pytest.mark.parametrize("phase", PHASES)
def test_phases_are_mixtures(phase):
    mixture = phase.mixture
    assert sum(getattr(mixture, k) for k in KINDS) == pytest.approx(1)
    assert 0 < phase.rate(0) <= 1
    assert phase.rate(phase.warmup) == 1
