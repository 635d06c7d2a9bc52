"""A corpus of one-sentence facts, and an index of it, for all tests of search."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from icrl.runtime.tools.index import build_index

SYLLABLES = ("ba", "ri", "ko", "nu", "ve", "da", "so", "mi", "ta", "le")
ATTRIBUTES = ("code", "mayor", "partner", "colour", "river", "founder", "capital", "motto")


@pytest.fixture(scope="session")
def facts() -> list[tuple[str, str, str]]:
    """Attribute, name and value of facts with the shape of the embedded ones: 400 names, 4 facts each."""
    chance = random.Random(0)
    names = chance.sample([a + b + c for a in SYLLABLES for b in SYLLABLES for c in SYLLABLES], 400)
    facts = [
        (attribute, name.title(), str(chance.randrange(100, 1000)))
        for name in names
        for attribute in chance.sample(ATTRIBUTES, 4)
    ]
    chance.shuffle(facts)
    return facts


@pytest.fixture(scope="session")
def facts_corpus(facts, tmp_path_factory) -> Path:
    """The facts as sentences."""
    lines = (json.dumps({"text": f"The {a} of {e} is {v}."}) for a, e, v in facts)
    path = tmp_path_factory.mktemp("facts") / "corpus.jsonl"
    path.write_text("\n".join(lines))
    return path


@pytest.fixture(scope="session")
def facts_index(facts_corpus) -> Path:
    """A BM25 index of the facts."""
    build_index(facts_corpus, facts_corpus.with_name("index"), show_progress=False)
    return facts_corpus.with_name("index")
