"""SQuAD's metrics to the letter, as Search-R1 and its successors report them."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterable, Sequence

from icrl.errors import DataError
from icrl.train.rewards.score import Score
from icrl.types import Task

__all__ = ["exact_match", "f1", "normalize", "overlap", "strict", "word_f1"]

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalize(text: str) -> str:
    """Normalise an answer as SQuAD does: lower case, no ASCII punctuation, no articles, single spaces.

    Source: Rajpurkar et al., SQuAD, arXiv 1606.05250, and its evaluation script. Traps that come with it: `3.14`
    becomes `314`, and accents, curly quotes and dashes stay; `normalize_robustly` has none of them.

    Example:
        >>> normalize("The  U.S. (state)")
        'us state'
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def _normal_golds(golds: Iterable[str]) -> list[str]:
    """Normalise reference answers; one that vanishes would match every other that vanishes."""
    normal = []
    for gold in golds:
        if not (words := normalize(gold)):
            raise DataError(f"answers: {gold!r} is empty after normalisation, so nothing could match it")
        normal.append(words)
    return normal


def exact_match(prediction: str | None, golds: Iterable[str]) -> float:
    """Return 1.0 if the normalised prediction equals any normalised gold, else 0.0.

    Raises:
        DataError: A gold normalises to nothing.

    Example:
        >>> exact_match("The Hague", ["Hague"]), exact_match("the", ["Hague"])
        (1.0, 0.0)
    """
    words = normalize(prediction or "")
    return float(words in _normal_golds(golds) and words != "")


def f1(prediction: str | None, golds: Iterable[str]) -> float:
    """Return the best F1 between the bags of normalised words of the prediction and of a gold, in [0, 1].

    Raises:
        DataError: A gold normalises to nothing.

    Example:
        >>> f1("in May 2001", ["May 5, 2001"])
        0.6666666666666666
    """
    words = normalize(prediction or "").split()
    return max((word_f1(words, gold.split()) for gold in _normal_golds(golds)), default=0.0)


def word_f1(words: Sequence[str], gold: Sequence[str]) -> float:
    """Return the harmonic mean of precision and recall of two bags, in SQuAD's order of operations.

    Example:
        >>> word_f1(["x", "y"], ["x"])
        0.6666666666666666
    """
    shared = (Counter(words) & Counter(gold)).total()
    if shared == 0:
        return 0.0
    precision, recall = shared / len(words), shared / len(gold)
    return 2 * precision * recall / (precision + recall)


def strict(answer: str | None, task: Task) -> Score:
    """Match as SQuAD does; components: `em`.

    Example:
        >>> strict("the 113", Task(query="code?", answers=("113",)))
        Score(total=1.0, components={'em': 1.0})
    """
    em = exact_match(answer, task.answers)
    return Score(total=em, components={"em": em})


def overlap(answer: str | None, task: Task) -> Score:
    """Pay SQuAD's F1, so that half an answer is worth something; components: `em`, `f1`.

    Example:
        >>> overlap("in May 2001", Task(query="when?", answers=("May 2001",))).components
        {'em': 0.0, 'f1': 0.8}
    """
    shared = f1(answer, task.answers)
    return Score(total=shared, components={"em": exact_match(answer, task.answers), "f1": shared})
