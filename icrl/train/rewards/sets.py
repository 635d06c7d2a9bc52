"""A matcher for answers that list things: the order does not count, and neither does repetition."""

from __future__ import annotations

import json
import re

from icrl.errors import DataError
from icrl.train.rewards.robust import normalize_robustly
from icrl.train.rewards.score import Score
from icrl.train.rewards.text import word_f1
from icrl.types import Task

__all__ = ["items", "same_set"]

_BLANKS = re.compile(r"[^\S\n]+")
_BULLET = re.compile(r"^ ?(?:[-*•]|\d{1,3}[.)]) ", re.MULTILINE)
# A comma between groups of three digits belongs to a number.
_SEPARATOR = re.compile(r"\s(?:and|&)\s|[;\n]|(?<!\d),|,(?!\d{3}(?!\d))", re.IGNORECASE)


def items(text: str) -> frozenset[str]:
    """Read a list: a JSON array, or what commas, semicolons, line breaks, bullets and `and` separate.

    Returns:
        The items, normalised robustly; empty ones are left out.

    Example:
        >>> sorted(items("Paris, London and Rome")), sorted(items('["Washington, D.C.", 1000]'))
        (['london', 'paris', 'rome'], ['1000', 'washington dc'])
    """
    parts = _array(text)
    if parts is None:
        parts = _SEPARATOR.split(_BULLET.sub("", _BLANKS.sub(" ", text)))
    return frozenset(words for part in parts if (words := normalize_robustly(part)))


def _array(text: str) -> list[str] | None:
    if not text.lstrip().startswith("["):
        return None
    try:
        array = json.loads(text)
    except (ValueError, RecursionError):
        return None
    plain = all(isinstance(item, str | int | float) for item in array)
    return [str(item) for item in array] if plain else None


def same_set(answer: str | None, task: Task) -> Score:
    """Match a list with reference lists; components: `em` (all and nothing else), `f1` of the items.

    Each reference answer is one whole list, written in any of the ways that `items` reads.

    Raises:
        DataError: A reference answer lists nothing.

    Example:
        >>> same_set("Rome and Paris", Task(query="which?", answers=("Paris, Rome",))).total
        1.0
        >>> same_set("Rome, Paris, Oslo", Task(query="which?", answers=("Paris, Rome",))).components
        {'em': 0.0, 'f1': 0.8}
    """
    named = items(answer or "")
    golds = {gold: items(gold) for gold in task.answers}
    for gold, wanted in golds.items():
        if not wanted:
            raise DataError(f"answers: {gold!r} lists nothing, so nothing could match it")
    em = float(named in golds.values())
    f1 = max((word_f1(sorted(named), sorted(wanted)) for wanted in golds.values()), default=0.0)
    return Score(total=em, components={"em": em, "f1": f1})
