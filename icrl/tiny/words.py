"""The vocabulary of the embedded world: attributes, values, ordinary words, tags, and how names are built."""

from __future__ import annotations

import itertools
from random import Random
from typing import NamedTuple

__all__ = [
    "ADJECTIVES",
    "ATTRIBUTES",
    "LISTED_ATTRIBUTES",
    "NAMED_ATTRIBUTES",
    "NAMES",
    "NAME_ENDS",
    "NAME_STARTS",
    "NOUNS",
    "NUMBERED_ATTRIBUTES",
    "OPENERS",
    "PUNCTUATION",
    "RESERVED",
    "TAGS",
    "WORDS",
    "Fact",
    "draw_fact",
    "units",
]


def _listed(text: str) -> tuple[str, ...]:
    return tuple(text.split())


RESERVED = (
    *("think", "search", "information", "answer", "python", "code", "output", "result", "interpreter"),
    *("tool_call", "tool_response"),
)
"""Tags that reinforcement learning teaches later. Pretraining text uses them as ordinary words at most."""

NAMED_ATTRIBUTES = _listed(
    "mayor founder king queen leader author captain teacher owner painter baker capital river port partner rival "
    "heir guard friend judge"
)
"""Attributes whose value is a name."""

NUMBERED_ATTRIBUTES = _listed("age height price code year depth weight score")
"""Attributes whose value is a whole number from 2 to 999."""

LISTED_ATTRIBUTES = {
    "color": _listed("red blue green black white yellow purple orange brown gray pink silver"),
    "metal": _listed("iron copper gold tin lead zinc steel bronze nickel brass"),
    "animal": _listed("wolf bear fox owl horse goat snake crow deer lion hare eagle"),
    "crop": _listed("wheat corn rice barley oats beans peas hops flax rye"),
    "drink": _listed("tea milk wine beer juice cider coffee water mead broth"),
    "tool": _listed("hammer axe saw spade rope knife needle plow anvil wheel"),
    "season": _listed("spring summer autumn winter"),
    "stone": _listed("ruby jade onyx opal pearl amber quartz marble slate flint"),
}
"""Attributes whose value comes from a list, with the list."""

ATTRIBUTES = (*NAMED_ATTRIBUTES, *LISTED_ATTRIBUTES, *NUMBERED_ATTRIBUTES)
"""Everything one can ask about an entity."""

TAGS = _listed(
    "step note plan look lookup find query ask fetch get call use tool data text doc page input reply final value "
    "fact facts item key memo view scan trace read open load seek hunt probe check reason idea task goal hint "
    "source record entry report detail clue context line block part piece body head start stop solve write say "
    "tell speak mind inner quest need want give show list table row cell field file folder card map log work "
    "action act do run return end done finish close conclude state claim guess verdict summary compute eval math "
    "sum total product number formula shell script print exec shown got echo"
)
"""Words that pretraining text likes to use as tags and labels; disjoint from `RESERVED`."""

WORDS = _listed(
    "the a an of is was in on at to and or but with from by for it its that this what which who where when how i "
    "you he she they we my your their has have had be are were not no yes can will must should know need find "
    "look up out now then so first next last one two three many some all old new small big good great dark bright "
    "long short near far town city hill road house wood field sea lake bridge tower wall gate door night day sun "
    "moon rain snow wind fire went came saw took gave made built sold bought found lost heard told said walked "
    "ran slept woke sang ate drank lived died loved there here people man woman child market boat tree garden "
    "story song book letter word name place thing time question prompt example examples user assistant tell me "
    "please about known as called belongs response correct using only into over under after before again because "
    "if each every other same plus minus times divided equals def import else while true false none loop x y z n"
)
"""Ordinary words."""

OPENERS = ("The", "In", "One", "Then", "They", "All", "There", "I", "Tell", "What", "Which", "Who", "Find")
"""Words that often begin a sentence inside a text."""

NOUNS = _listed(
    "town city hill road house wood field sea lake bridge tower wall gate door night day sun moon rain snow wind "
    "fire boat market tree garden story song book letter"
)
"""What stories are about."""

ADJECTIVES = _listed("old new small big good great dark bright long short near far lost")
"""What things in stories are like."""

PUNCTUATION = (
    *".,:;?!<>/[]{}()#=-*|_\"'+%\n",
    *("</", "\n\n", "##", "==", "--", "->", "**", "//", "[/", "{/", "<<", ">>", "[[", "]]", "```"),
)
"""Marks that are one token each."""

NAME_STARTS = tuple(f"{c}{v}" for c in "BDFGHKLMNPRSTVZ" for v in "aeiou")[:70]
"""First syllables of names."""

NAME_ENDS = tuple(f"{c}{v}{e}" for c in "bdgklmnrstvz" for v in "aeiou" for e in "nxr")[:160:2]
"""Last syllables of names."""

NAMES = tuple(s + e for s in NAME_STARTS for e in NAME_ENDS if (s + e).lower() not in ATTRIBUTES)
"""Every name of the world; each is two tokens."""


class Fact(NamedTuple):
    """One thing that holds: the `attribute` of `entity` is `value`."""

    attribute: str
    entity: str
    value: str


def draw_fact(random: Random, *, attribute: str | None = None, entity: str | None = None) -> Fact:
    """Invent a fact; what is not given is drawn.

    Example:
        >>> draw_fact(Random(1), attribute="season", entity="Rikor").value in LISTED_ATTRIBUTES["season"]
        True
    """
    attribute = attribute or random.choice(ATTRIBUTES)
    return Fact(attribute, entity or random.choice(NAMES), _draw_value(random, attribute))


def _draw_value(random: Random, attribute: str) -> str:
    if attribute in LISTED_ATTRIBUTES:
        return random.choice(LISTED_ATTRIBUTES[attribute])
    if attribute in NUMBERED_ATTRIBUTES:
        return str(random.randint(2, 999))
    return random.choice(NAMES)


def units() -> tuple[str, ...]:
    """List every string that has to be one token, with and without its leading space.

    Example:
        >>> {" mayor", "Ba", " 7", "</"} <= set(units())
        True
    """
    spoken = {*WORDS, *TAGS, *(w for w in RESERVED if "_" not in w)}
    named = {*ATTRIBUTES, *itertools.chain.from_iterable(LISTED_ATTRIBUTES.values())}
    spaced = (*sorted(spoken | named), *OPENERS, *NAME_STARTS, *(p for p in PUNCTUATION if p.strip()), *"0123456789")
    forms = (*(f" {u}" for u in spaced), *spaced, *NAME_ENDS, *(w.capitalize() for w in sorted(spoken)), *PUNCTUATION)
    return tuple(dict.fromkeys(forms))
