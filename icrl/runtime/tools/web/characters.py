"""Characters of foreign text: those that hide something are taken out, the others get one spelling."""

from __future__ import annotations

import re
import unicodedata

__all__ = ["MAX_MARKS", "clean"]

MAX_MARKS = 8
"""Combining marks on one letter; more are decoration, and cost quadratic time to put in order."""

_NEWLINES = re.compile(r"\r\n?|[\u2028\u2029\x85\x0b\x0c]")
_HIDDEN_CATEGORIES = frozenset({"Cc", "Cf"})
# Default-ignorable code points that are letters, marks or unassigned by category (Unicode's DerivedCoreProperties),
# among them the variation selectors and the tag block, which can carry a text that nobody sees.
_IGNORABLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2065\u3164\ufe00-\ufe0f\uffa0\ufff0-\ufff8"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
# Of category Cf, and yet they are seen: signs that enclose digits in Arabic, Syriac and Kaithi.
_VISIBLE_FORMATS = frozenset("\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2\U000110bd\U000110cd")


def clean(text: str) -> str:
    r"""Remove control, zero-width, bidirectional and other invisible characters; bring the rest into NFC.

    Line ends become `\n`; tabs stay. Lone surrogates and noncharacters become U+FFFD. Cleaning again changes nothing.

    Example:
        >>> clean("pass\u200bword\u202e \x1b[1mnow\r\n")
        'password [1mnow\n'
    """
    text = _NEWLINES.sub("\n", text)
    if not text.isascii():
        text = _IGNORABLE.sub("", text)
    text = text.translate({ord(c): _spell(c) for c in set(text) if _is_hidden(c)})
    if text.isascii():
        return text
    text = _limit_marks(text)
    # Composing can leave room for further marks; a second round finds nothing more to do.
    return _limit_marks(unicodedata.normalize("NFC", text))


def _is_hidden(character: str) -> bool:
    if character in "\n\t" or character in _VISIBLE_FORMATS:
        return False
    return unicodedata.category(character) in _HIDDEN_CATEGORIES or _is_no_character(character)


def _is_no_character(character: str) -> bool:
    code = ord(character)
    return 0xD800 <= code < 0xE000 or 0xFDD0 <= code < 0xFDF0 or code & 0xFFFE == 0xFFFE


def _spell(character: str) -> str:
    return "\ufffd" if _is_no_character(character) else ""


def _limit_marks(text: str) -> str:
    marks = "".join(c for c in set(text) if unicodedata.combining(c))
    if not marks:
        return text
    return re.sub(f"([{marks}]{{{MAX_MARKS}}})[{marks}]+", r"\1", text)
