"""A matcher that forgives typography and keeps numbers apart."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from icrl.errors import DataError
from icrl.train.rewards.score import Score
from icrl.types import Task

__all__ = ["normal_golds", "normalize_robustly", "robust"]

_QUOTES = str.maketrans(dict.fromkeys("'‘’‚‛′ʼ´`＇"))
_DASHES = str.maketrans(dict.fromkeys("‐‑‒–—―−﹣－", "-"))
# NFKC would make "10⁵" the number 105, and "3½" the number 31/2.
_POWER = re.compile(r"[⁰¹²³⁴-⁹]+")
_FRACTION = re.compile(r"(?<=\d)[¼-¾⅐-⅞]")
_ACCENTS = re.compile(r"(?<=[a-z])[\u0300-\u036f]+")
_INITIALS = re.compile(r"\b(?:[^\W\d_]\.\s*){2,}")
_GROUPED = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_BARE_POINT = re.compile(r"(?<![\w.])\.(?=\d)")
# What stays of the marks: a point or stroke between digits, the sign of a number, and signs that carry meaning.
_MARKS = re.compile(r"(?<=\d)[./](?=\d)|(?<![\w\-])-(?=\d)|[%#&@]")
_ARTICLES = re.compile(r"(?<!\S)(?:a|an|the)\s+(?=\S)")


def normalize_robustly(text: str) -> str:
    """Normalise an answer so that typography does not count and numbers do.

    Unicode NFKC and case folding; one kind of quote, dash and minus; no invisible characters; no accents on Latin
    letters; initials joined; thousands ungrouped. Points between digits, fraction strokes, signs of numbers and
    `% # & @` stay, apostrophes vanish, other punctuation parts words. Articles go where a word follows.

    Example:
        >>> normalize_robustly("The “Saint–Étienne” tram, №. 3.14"), normalize_robustly("A. A. Milne")
        ('saint etienne tram no 3.14', 'aa milne')
    """
    text = _fold(_plain_marks(text))
    text = _GROUPED.sub("", _INITIALS.sub(_join, text))
    text = _without_marks(_BARE_POINT.sub("0.", text))
    return " ".join(_ARTICLES.sub("", " ".join(text.split())).split())


def _plain_marks(text: str) -> str:
    text = _FRACTION.sub(r" \g<0>", _POWER.sub(r"^\g<0>", text))
    # NFKC takes some quotes apart, and makes others.
    text = unicodedata.normalize("NFKC", text.translate(_QUOTES)).translate(_QUOTES | _DASHES)
    return "".join(c for c in text.replace("⁄", "/") if unicodedata.category(c) not in ("Cf", "Cc") or c.isspace())


def _fold(text: str) -> str:
    apart = unicodedata.normalize("NFD", text.casefold())
    return unicodedata.normalize("NFKC", _ACCENTS.sub("", apart))


def _join(initials: re.Match[str]) -> str:
    return re.sub(r"[.\s]", "", initials[0]) + " "


def _without_marks(text: str) -> str:
    kept = {found.start() for found in _MARKS.finditer(text)}
    return "".join(c if i in kept or not unicodedata.category(c).startswith("P") else " " for i, c in enumerate(text))


def normal_golds(golds: Iterable[str]) -> list[str]:
    """Normalise reference answers robustly.

    Raises:
        DataError: One of them vanishes.

    Example:
        >>> normal_golds(["The", "3,000 m"])
        ['the', '3000 m']
    """
    normal = {gold: normalize_robustly(gold) for gold in golds}
    for gold, words in normal.items():
        if not words:
            raise DataError(f"answers: {gold!r} is empty after normalisation, so nothing could match it")
    return list(normal.values())


def robust(answer: str | None, task: Task) -> Score:
    """Match after robust normalisation; components: `em`.

    Raises:
        DataError: A reference answer is nothing but punctuation.

    Example:
        >>> robust("Saint-Étienne", Task(query="where?", answers=("Saint Etienne",))).total
        1.0
        >>> robust("314", Task(query="how much?", answers=("3.14",))).total
        0.0
    """
    words = normalize_robustly(answer or "")
    em = float(words in normal_golds(task.answers) and words != "")
    return Score(total=em, components={"em": em})
