"""Pretraining text: made-up documents of six kinds, none of which ever uses a reserved word as a tag or label.

episodes     several records in one invented format: imitation (`icrl.tiny.episodes`)
choices      records in two formats that differ in a tag, one for facts and one for sums: imitation of what fits
reading      a text, then questions and answers about it: extraction
repeats      random units, two to four times over: copying
pairs        a random dictionary, then the same entries in another order: recall
prose        facts and stories: ordinary use of words, the reserved ones too
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random

from icrl.tiny.episodes import SPOKEN, draw_choices, draw_episodes
from icrl.tiny.subjects import FACT_WORDINGS, QUESTIONS
from icrl.tiny.words import ADJECTIVES, NAMES, NOUNS, PUNCTUATION, RESERVED, Fact, draw_fact, units

__all__ = ["Mixture", "clean", "documents", "draw_document"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """Shares of the kinds of document, and how long episodes are."""

    episodes: float
    """Share of episodes."""
    reading: float
    """Share of texts with questions."""
    repeats: float
    """Share of repeated random units."""
    pairs: float
    """Share of random dictionaries."""
    prose: float
    """Share of stories."""
    records: tuple[int, int]
    """Fewest and most records of an episodes document."""
    sums: float
    """Share of episodes documents that are about sums."""
    choices: float = 0.0
    """Share of documents that show two formats and when to use which; the other shares are of the rest."""


def documents(random: Random, mixture: Mixture) -> Iterator[str]:
    """Yield documents without end, all of them clean.

    Example:
        >>> mixture = Mixture(episodes=0, reading=0, repeats=0, pairs=0, prose=1, records=(2, 2), sums=0)
        >>> all(clean(text) for text, _ in zip(documents(Random(0), mixture), range(9)))
        True
    """
    while True:
        text = draw_document(random, mixture)
        if clean(text):
            yield text


def draw_document(random: Random, mixture: Mixture) -> str:
    """Write one document, which may still use a reserved word as a tag by accident."""
    if mixture.choices and random.random() < mixture.choices:
        return draw_choices(random)
    kinds: dict[Callable[[Random], str], float] = {
        lambda r: draw_episodes(r, mixture.records, mixture.sums): mixture.episodes,
        _reading: mixture.reading,
        _repeats: mixture.repeats,
        _pairs: mixture.pairs,
        _prose: mixture.prose,
    }
    return random.choices(list(kinds), weights=list(kinds.values()))[0](random)


_NAME = "(?:" + "|".join(RESERVED) + ")"
_TAGGED = re.compile(
    rf"tool_(?:call|response)|[<\[{{(/#*|=:`_\-]\s*{_NAME}\b|\b{_NAME}\s*[>\]}})|=:`_*/\-]|^[^\S\n]*{_NAME}[^\S\n]*$",
    re.IGNORECASE | re.MULTILINE,
)


def clean(text: str) -> bool:
    """Tell whether no reserved word stands where a tag, label or heading could.

    Next to a bracket or a mark that could delimit (spaces ignored), and alone on a line, it is refused.

    Example:
        >>> clean("They search the town."), clean("< Search"), clean("answer: 7")
        (True, False, False)
    """
    return _TAGGED.search(text) is None


_LABELS = (
    ("Q: ", "A: "),
    ("Question: ", "Reply: "),
    ("User: ", "Assistant: "),
    ("", ""),
    ("- ", "-> "),
    ("Query: ", "Found: "),
)


def _reading(random: Random) -> str:
    facts: dict[tuple[str, str], Fact] = {}
    for _ in range(random.randint(3, 7)):
        known = [f.entity for f in facts.values()]
        fact = draw_fact(random, entity=random.choice(known) if known and random.random() < 0.4 else None)
        facts.setdefault((fact.attribute, fact.entity), fact)
    text = " ".join(_say(random, f) for f in facts.values())
    ask, reply = random.choice(_LABELS)
    question = random.choice(QUESTIONS)
    asked = random.sample(list(facts.values()), min(len(facts), random.randint(2, 4)))
    lines = (f"{ask}{question.format(a=f.attribute, e=f.entity)}\n{reply}{f.value}\n" for f in asked)
    return f"{text}\n{''.join(lines)}"


def _say(random: Random, fact: Fact) -> str:
    return random.choice(FACT_WORDINGS).format(a=fact.attribute, e=fact.entity, v=fact.value)


_UNITS = tuple(u for u in units() if u.strip())
_LOOSE = (SPOKEN, NAMES, (*SPOKEN, *NAMES, *PUNCTUATION), (*SPOKEN, *NAMES), tuple("0123456789+-*/()="))
_PLAIN = tuple(w for w in (*SPOKEN, *NAMES) if w not in RESERVED)
_MARKS = tuple(".,;?!'%+")
_SPOKEN_RESERVED = tuple(w for w in RESERVED if "_" not in w)
_WORDS = tuple(u for u in _UNITS if u.isalpha() and len(u) > 1)
_JOINED = (*_WORDS, *(_SPOKEN_RESERVED * (len(_WORDS) // 60)))
"""Words to set between marks that delimit nothing; one in eight or so is reserved. A word that never follows a mark
is never predicted there, whatever is to be copied."""


def _repeats(random: Random) -> str:
    length = random.randint(4, 70)
    roll = random.random()
    if roll < 0.25:
        marks = random.sample(_MARKS, random.randint(1, 3))
        once = [random.choice(_JOINED) + random.choice(marks) for _ in range(length // 2 + 1)]
    elif roll < 0.35:
        once = [_number(random) for _ in range(length // 2 + 1)]
    else:
        pool = _UNITS if roll < 0.55 else random.choice(_LOOSE)
        once = [random.choice(pool) for _ in range(length)]
    return ("" if roll < 0.25 or 0.35 <= roll < 0.55 else " ").join(once * (2 if length > 35 else random.randint(2, 4)))


def _number(random: Random) -> str:
    return str(random.randrange(10 ** random.randint(1, 5)))


def _pairs(random: Random) -> str:
    link = random.choice((" ", " is ", ": ", " = ", " -> ", "> "))
    end = random.choice(("\n", " ; ", ". ", " , "))
    width = random.choice((1, 1, 2))
    keys = dict.fromkeys(_some(random, width) for _ in range(random.randint(3, 14)))
    numbers = random.random() < 0.3
    entries = [k + link + (_number(random) if numbers else _some(random, random.choice((1, 1, 2)))) for k in keys]
    return end.join(e for _ in range(random.randint(2, 3)) for e in random.sample(entries, len(entries)))


def _some(random: Random, count: int) -> str:
    return " ".join(random.choice(_PLAIN) for _ in range(count))


_STORY = (
    *("{p} went to the {w} of {e}.", "One day {p} saw the {x} {w}.", "{p} told {r} about the {w}."),
    *("The {w} was {x} and {y}.", "{r} lived in {e} by the {x} {w}.", "Then {p} found a {w} and gave it to {r}."),
    *("{p} can search for the {w}.", "They think the {w} is {x}.", "The answer was not known to {p}."),
    *("All the information about {e} is lost.", "{p} will answer {r} again.", "I think that {r} must search the {w}."),
    *("There is no information in the {w}.", "{p} saw a {x} python in the {w}.", "The result was known in {e}."),
    *("One interpreter came to {e} with {p}.", "The output of the {w} is {x}.", "{r} wrote some code in the {w}."),
)


def _prose(random: Random) -> str:
    p, r, e = (random.choice(NAMES) for _ in range(3))
    sentences = []
    for _ in range(random.randint(3, 9)):
        if random.random() < 0.3:
            sentences.append(_say(random, draw_fact(random)))
        else:
            x, y = (random.choice(ADJECTIVES) for _ in range(2))
            sentences.append(random.choice(_STORY).format(p=p, r=r, e=e, w=random.choice(NOUNS), x=x, y=y))
    return " ".join(sentences)
