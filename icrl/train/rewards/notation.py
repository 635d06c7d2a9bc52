"""Reading answers to mathematical questions: the last box, LaTeX or plain notation, whole numbers."""

from __future__ import annotations

import re
import unicodedata

__all__ = ["as_latex", "boxed", "final_answer", "whole_number"]

_BOX = re.compile(r"\\boxed\s*\{")
_DELIMITERS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"))
_MATHS_IN_PROSE = re.compile(r"(?<!\\)\$|\\[(\[]")
_SPACING = re.compile(r"\\[,!;: ]|~|\{,\}")
_WHOLE = re.compile(r"[+-]?(?:\d{1,3}(?:,\d{3})+|\d{1,512})", re.ASCII)
_WORD = re.compile(r"(?<![\\A-Za-z])(sqrt|pi)(?![A-Za-z])")
_ROOT_OF_PARENTHESIS = re.compile(r"\\sqrt\s*\(([^()]*)\)")
_POWER = re.compile(r"[⁰¹²³⁴-⁹]+")
_SYMBOLS = str.maketrans(
    {
        "π": r"\pi ",
        "∞": r"\infty ",
        "√": r"\sqrt ",
        "×": r"\times ",
        "·": r"\cdot ",
        "÷": "/",
        "⁄": "/",
        "−": "-",
        "≤": r"\le ",
        "≥": r"\ge ",
        "∪": r"\cup ",
        "°": r"^\circ ",
    }
)


def boxed(text: str) -> str | None:
    r"""Return what the last `\boxed{…}` holds; `None` where there is none, or it never closes.

    Example:
        >>> boxed(r"\boxed{1}, no: \boxed{\frac{1}{2}}")
        '\\frac{1}{2}'
    """
    starts = [found.end() for found in _BOX.finditer(text)]
    depth = 1
    for i in range(starts[-1] if starts else len(text), len(text)):
        if text[i] in "{}" and text[i - 1] != "\\":
            depth += 1 if text[i] == "{" else -1
        if depth == 0:
            return text[starts[-1] : i]
    return None


def final_answer(text: str | None) -> str:
    r"""Return the last box's content, or else the text, without the delimiters of LaTeX around it.

    Example:
        >>> final_answer(r"It is \boxed{7}."), final_answer("$7$."), final_answer(None)
        ('7', '7', '')
    """
    plain = (text or "").encode("utf-8", "replace").decode()
    inside = boxed(plain)
    answer = (plain if inside is None else inside).strip().rstrip(".").rstrip()
    for start, end in _DELIMITERS:
        middle = answer[len(start) : -len(end)].strip()
        if answer.startswith(start) and answer.endswith(end) and middle and start not in middle:
            return middle
    return answer


def whole_number(answer: str) -> int | None:
    r"""Read a whole number of at most 512 digits, as contests ask for; `None` for anything else.

    Example:
        >>> whole_number("073"), whole_number("1{,}000"), whole_number("-5"), whole_number("5.0")
        (73, 1000, -5, None)
    """
    plain = _SPACING.sub(lambda found: "," if found[0] == "{,}" else "", answer.replace("−", "-"))
    plain = "".join(plain.split())
    return int(plain.replace(",", "")) if _WHOLE.fullmatch(plain) else None


def as_latex(answer: str) -> str:
    r"""Write an answer so that a parser of LaTeX reads all of it as mathematics.

    Prose with mathematics in it stays as it is.

    Example:
        >>> as_latex("2sqrt(x+1)"), as_latex("{1, 3}"), as_latex("x² ≤ 2π")
        ('$2\\sqrt{x+1}$', '$\\{1, 3\\}$', '$x^{2} \\le  2\\pi $')
    """
    if _MATHS_IN_PROSE.search(answer):
        return answer
    powers = _POWER.sub(lambda found: f"^{{{unicodedata.normalize('NFKC', found[0])}}}", answer)
    plain = unicodedata.normalize("NFKC", powers).translate(_SYMBOLS).replace("**", "^")
    plain = _ROOT_OF_PARENTHESIS.sub(r"\\sqrt{\1}", _WORD.sub(r"\\\1 ", plain).replace(r"\sqrt (", r"\sqrt("))
    if plain.startswith("{") and plain.endswith("}"):
        plain = rf"\{{{plain[1:-1]}\}}"
    return f"${plain}$"
