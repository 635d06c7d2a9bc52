"""What the records of a pretraining document are about: looking up facts, or working out sums.

A subject draws its wordings once per document and then yields one record after another, each a question together with
the text of every field. Only wordings live here; tags, separators and order are `icrl.tiny.episodes`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Literal

from icrl.tiny.words import WORDS, Fact, draw_fact

__all__ = ["FACT_WORDINGS", "QUESTIONS", "FieldKind", "Record", "draw_sum", "fact_subject", "sum_subject"]

FieldKind = Literal["thought", "key", "evidence", "answer", "constant"]
"""A field's relation to its record: loosely about it, copied from the question, a text that holds the answer, copied
from that text, or the same in every record."""

FACT_WORDINGS = (
    "The {a} of {e} is {v}.",
    "The {a} of {e} is {v}.",
    "{e} has the {a} {v}.",
    "{v} is the {a} of {e}.",
    "In {e} the {a} is {v}.",
    "{e} : {a} is {v}.",
)
"""How a fact is said; `a`, `e` and `v` are attribute, entity and value."""

QUESTIONS = (
    "What is the {a} of {e}?",
    "What is the {a} of {e}?",
    "Tell me the {a} of {e}.",
    "Find the {a} of {e}",
    "Which {a} has {e}?",
    "I need the {a} of {e}.",
    "{e} {a}?",
    "What {a} is in {e}?",
    "Who or what is the {a} of {e}?",
)
"""How a fact is asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wordings:
    """Templates of one subject; `q` is the question, the other names are the subject's own."""

    questions: tuple[str, ...]
    """Ways to ask."""
    keys: tuple[str, ...]
    """Ways to repeat what the question is about."""
    thoughts: tuple[str, ...]
    """Things one may say before acting."""
    mentions: tuple[str, ...]
    """Names that may be dropped into a random thought."""
    answers: tuple[str, ...]
    """Ways to give the value."""
    constants: tuple[str, ...]
    """Replies that ignore the evidence."""


_FACTS = _Wordings(
    questions=QUESTIONS,
    keys=("{e}", "{a} {e}", "{a} of {e}", "{e} {a}", "the {a} of {e}", "{q}", "{e} , {a}", "{a}"),
    thoughts=(
        *("I need the {a} of {e}.", "now look up {e}.", "find the {a}.", "the question is about {e}."),
        *("I do not know the {a} of {e}.", "it is about the {a}.", "I should read about {e} now.", "yes."),
        "so I can find it.",
    ),
    mentions=("{e}", "{a}"),
    answers=(*("{v}",) * 6, "it is {v}", "the {a} is {v}", "{v} is the {a}", "{v}.", "The {a} of {e} is {v}."),
    constants=("{e}", "{a}", "{e} {a}"),
)

_SUMS = _Wordings(
    questions=(
        *("What is {x}?", "What is {x}?", "Compute {x}.", "Tell me {x}.", "{x} = ?", "{x}", "I need {x}."),
        *("How much is {x}?", "Find the value of {x}"),
    ),
    keys=(
        *("{x}", "{x}", "print( {x} )", "print({x})", "print( {x} )", "x = {x}", "eval( {x} )", "n = {x}\nprint(n)"),
        *("return {x}", "( {x} )", "{x} =", "{q}", "y = {x}\nprint( y )"),
    ),
    thoughts=(
        *("I need {x}.", "now compute {x}.", "find the value.", "the question is about {x}.", "I do not know {x}."),
        *("I should work this out.", "yes.", "so I can compute it."),
    ),
    mentions=("{x}",),
    answers=(*("{v}",) * 6, "it is {v}", "the value is {v}", "{x} = {v}", "{v}.", "= {v}"),
    constants=("{x}", "done"),
)

_SUM_EVIDENCE = ("{v}", "{v}", "{v}", "= {v}", "{x} = {v}", "It is {v}.", "0 : {v}", "{v} done", "[ {v} ]", "value {v}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One question with the text of each field of its document."""

    question: str
    """The question."""
    fields: tuple[str, ...]
    """One text for each field kind the document has, in the same order."""


Subject = Callable[[], Record]
"""Draws the next record of a document."""


def fact_subject(random: Random, kinds: tuple[FieldKind, ...]) -> Subject:
    """Start a document of records that look facts up.

    Args:
        random: Source of all choices.
        kinds: The fields each record has.

    Example:
        >>> record = fact_subject(Random(0), ("key", "answer"))()
        >>> len(record.fields)
        2
    """
    size = random.choice((1, 1, 2, 2, 3, 4))
    wording = random.choice(FACT_WORDINGS)
    varied = random.random() < 0.4

    def slots() -> dict[str, str]:
        fact = draw_fact(random)
        facts = _surround(random, fact, size)
        said = (_say(random.choice(FACT_WORDINGS) if varied else wording, f) for f in facts)
        return {"a": fact.attribute, "e": fact.entity, "v": fact.value, "evidence": " ".join(said)}

    return _subject(random, kinds, _FACTS, slots)


def sum_subject(random: Random, kinds: tuple[FieldKind, ...]) -> Subject:
    """Start a document of records that work out sums; arguments as for `fact_subject`."""
    wording = random.choice(_SUM_EVIDENCE)
    tight = random.random() < 0.15

    def slots() -> dict[str, str]:
        expression, value = draw_sum(random)
        expression = expression.replace(" ", "") if tight else expression
        return {"x": expression, "v": str(value), "evidence": wording.format(x=expression, v=value)}

    return _subject(random, kinds, _SUMS, slots)


def _subject(
    random: Random, kinds: tuple[FieldKind, ...], wordings: _Wordings, slots: Callable[[], dict[str, str]]
) -> Subject:
    templates = [_field_template(random, kind, wordings) for kind in kinds]
    usual = random.choice(wordings.questions)
    varied = random.random() < 0.3

    def draw() -> Record:
        names = slots()
        names["q"] = (random.choice(wordings.questions) if varied else usual).format_map(names)
        return Record(question=names["q"], fields=tuple(t.format_map(names) for t in templates))

    return draw


def _field_template(random: Random, kind: FieldKind, wordings: _Wordings) -> str:
    if kind == "evidence":
        return "{evidence}"
    if kind == "thought":
        return random.choice(wordings.thoughts) if random.random() < 0.5 else _ramble(random, wordings.mentions)
    if kind == "constant":
        return random.choice((*wordings.constants, random.choice(WORDS)))
    return random.choice(wordings.keys if kind == "key" else wordings.answers)


def _ramble(random: Random, mentions: tuple[str, ...]) -> str:
    """Random words, with what the question is about dropped in now and then."""
    words = [random.choice(WORDS) for _ in range(random.randint(1, 6))]
    for mention, chance in zip(mentions, (0.6, 0.4), strict=False):
        if random.random() < chance:
            words.insert(random.randint(0, len(words)), mention)
    return " ".join(words)


def _surround(random: Random, fact: Fact, size: int) -> list[Fact]:
    """Hide a fact among others that share its entity, its attribute, or nothing."""
    facts = [fact]
    while len(facts) < size:
        roll = random.random()
        other = draw_fact(
            random,
            entity=fact.entity if roll < 0.5 else None,
            attribute=fact.attribute if 0.5 <= roll < 0.85 else None,
        )
        if (other.attribute, other.entity) != (fact.attribute, fact.entity):
            facts.append(other)
    random.shuffle(facts)
    return facts


def _say(wording: str, fact: Fact) -> str:
    return wording.format(a=fact.attribute, e=fact.entity, v=fact.value)


def draw_sum(random: Random) -> tuple[str, int]:
    """Invent an expression in symbols, and its value.

    Example:
        >>> draw_sum(Random(3))
        ('71 * 79', 5609)
    """
    expression, value = _combine(random, *_operand(random))
    if random.random() < 0.35:
        expression, value = _combine(random, f"( {expression} )", value)
    return expression, value


def _operand(random: Random) -> tuple[str, int]:
    value = random.randint(2, 99) if random.random() < 0.7 else random.randint(100, 999)
    return str(value), value


def _combine(random: Random, left: str, left_value: int) -> tuple[str, int]:
    right, right_value = _operand(random)
    symbol = random.choice("+-**")
    if symbol == "+":
        return f"{left} + {right}", left_value + right_value
    if symbol == "-":
        return f"{left} - {right}", left_value - right_value
    return f"{left} * {right}", left_value * right_value
