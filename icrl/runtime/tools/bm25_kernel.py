"""The loop that adds up postings, compiled; importing this takes half a second, and seconds the first time."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

__all__ = ["rank"]


def _rank(words: Any, starts: Any, documents: Any, scores: Any, totals: Any, best: Any, best_scores: Any) -> int:
    """Find the documents with the largest totals, of equal ones the earlier.

    Args:
        words: Word ids of a query.
        starts: [V + 1], where each word's postings begin.
        documents: [P], the document of each posting.
        scores: [P], what it contributes.
        totals: [N] zeros, and zeros again afterwards.
        best: [k], receives documents, best first.
        best_scores: [k], receives their totals.

    Returns:
        How many were found.
    """
    # An index of an unsigned type cannot be negative, so numba leaves out the test for that: a third of the time.
    for word in words:
        for posting in range(np.uint64(starts[word]), np.uint64(starts[word + 1])):
            totals[np.uint32(documents[posting])] += scores[posting]
    found = 0
    zero = worst = np.float32(0)
    for word in words:
        for posting in range(np.uint64(starts[word]), np.uint64(starts[word + 1])):
            document = np.uint32(documents[posting])
            total = totals[document]
            totals[document] = zero
            if total >= worst and total > zero:
                found = _insert(document, total, best, best_scores, found)
                if found == len(best):
                    worst = best_scores[found - 1]
    return found


def _insert(document: Any, total: Any, best: Any, best_scores: Any, found: int) -> int:
    place = found
    while place > 0 and (
        total > best_scores[place - 1] or (total == best_scores[place - 1] and document < best[place - 1])
    ):
        place -= 1
    if place == len(best):
        return found
    found = min(found + 1, len(best))
    for i in range(found - 1, place, -1):
        best[i] = best[i - 1]
        best_scores[i] = best_scores[i - 1]
    best[place] = document
    best_scores[place] = total
    return found


def _compile(function: Any) -> Any:
    """Compile, and keep the result on disk where there is a place for it."""
    try:
        return njit(nogil=True, cache=True)(function)
    except RuntimeError:
        return njit(nogil=True)(function)


_insert = _compile(_insert)
rank = _compile(_rank)
