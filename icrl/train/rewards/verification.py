"""What the processes of `MathMatcher` run: math-verify, without time limits of its own.

Its limits are alarms, which need the main thread, are swallowed along the way and then look like wrong answers. Here
nothing limits a verification but the signal that kills the process.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Literal

from icrl.train.rewards.notation import as_latex

__all__ = ["Verdict", "make_verifier"]

Verdict = Literal["equal", "different", "unreadable", "unreadable_gold"]
"""What a verification finds; `unreadable` means that the answer is no mathematics, at least to the parser."""


def make_verifier() -> Callable[[tuple[Sequence[str], str]], Verdict]:
    r"""Load math-verify and return the function that judges `(golds, answer)`.

    Example:
        >>> make_verifier()(([r"\frac{1}{2}"], "0.5"))
        'equal'
    """
    import math_verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns in every process that limits are off

    def parsed(text: str) -> list[object]:
        return list(math_verify.parse(as_latex(text), parsing_timeout=None))

    def verify(request: tuple[Sequence[str], str]) -> Verdict:
        golds = [parsed(gold) for gold in request[0]]
        answer = parsed(request[1])
        # The order matters: gold `1 < x < 2` takes the answer `(1, 2)`, gold `(1, 2)` does not take `1 < x < 2`.
        if any(math_verify.verify(gold, answer, timeout_seconds=None) for gold in golds):
            return "equal"
        if not all(map(_readable, golds)):
            return "unreadable_gold"
        return "different" if _readable(answer) else "unreadable"

    return verify


def _readable(parsed: Sequence[object]) -> bool:
    """Whether there is an expression; mere text is what remains where parsing failed."""
    return not all(isinstance(part, str) for part in parsed)
