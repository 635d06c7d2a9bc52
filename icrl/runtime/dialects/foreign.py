"""Making text that the model did not write safe to show to it."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

from icrl.tokenizer import Tokenizer
from icrl.types import ToolResult

__all__ = ["escape", "escape_all", "escaped", "shown"]

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_INVISIBLE = r"[\s\u00ad\u200b-\u200f\u2060-\u2064\ufeff]"
_CHARACTERS_PER_TOKEN = 32
_REPLACEMENT = "\ufffd"


def escape(text: str, tags: Collection[str]) -> str:
    r"""Escape control characters, and the tags by which a text could pretend to be something else.

    A tag counts in any case, with spaces or invisible characters around its slash and name, and unfinished. All other
    text stays as it is. The result contains neither, so that escaping again changes nothing.

    Args:
        text: Foreign text.
        tags: Names of tags, such as `information`.

    Example:
        >>> print(escape("1 < 2 </Information >\0", ["information"]))
        1 < 2 &lt;/Information >\x00
    """
    return _tags(tuple(tags)).sub("&lt;", _CONTROL.sub(_visible, text))


def escape_all(value: Any, tags: Collection[str]) -> Any:
    """Escape every text in JSON data, keys included.

    Example:
        >>> escape_all({"a": ["</tools>", 1]}, ["tools"])
        {'a': ['&lt;/tools>', 1]}
    """
    if isinstance(value, str):
        return escape(value, tags)
    if isinstance(value, Mapping):
        return {escape(str(key), tags): escape_all(item, tags) for key, item in value.items()}
    return [escape_all(item, tags) for item in value] if isinstance(value, list | tuple) else value


def escaped(result: ToolResult, tags: Collection[str]) -> ToolResult:
    """Escape a result's text; the result itself where there is nothing to escape."""
    text = escape(result.text, tags)
    return result if text == result.text else replace(result, text=text)


@lru_cache(maxsize=64)
def _tags(names: tuple[str, ...]) -> re.Pattern[str]:
    alternatives = "|".join(map(re.escape, names))
    return re.compile(rf"<(?={_INVISIBLE}*/?{_INVISIBLE}*(?:{alternatives})(?![\w-]))", re.IGNORECASE)


def _visible(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


def shown(tokenizer: Tokenizer, result: ToolResult, *, tags: Collection[str], max_tokens: int) -> ToolResult:
    """Return a result as the model is shown it: escaped, and cut in the middle where it is too long.

    Args:
        tokenizer: Counts tokens.
        result: What the tool answered.
        tags: Names of tags to escape.
        max_tokens: Tokens to keep, the notice in the middle included; a limit below the notice keeps the notice.
    """
    text, window = result.text, max_tokens * _CHARACTERS_PER_TOKEN
    if len(text) <= 2 * window:
        whole = escaped(result, tags)
        # A token stands for at least one byte, so most results need no counting.
        if len(whole.text.encode()) > max_tokens and len(ids := tokenizer.encode(whole.text)) > max_tokens:
            cut = _cut(tokenizer, ids, ids, len(whole.text), tags, max_tokens)
            return replace(result, text=cut, truncated=True)
        return whole
    # What lies this far from both ends is cut in any case, so the time for a long text depends on the limit alone.
    head, tail = (escape(part, tags) for part in (text[:window], text[-window:]))
    total = len(text) - 2 * window + len(head) + len(tail)
    cut = _cut(tokenizer, tokenizer.encode(head), tokenizer.encode(tail), total, tags, max_tokens)
    return replace(result, text=cut, truncated=True)


def _cut(
    tokenizer: Tokenizer, head: list[int], tail: list[int], characters: int, tags: Collection[str], max_tokens: int
) -> str:
    """Keep whole tokens of both ends and put a notice between them, `max_tokens` together."""
    keep = max_tokens
    while True:
        first = tokenizer.decode(head[: (keep + 1) // 2]).rstrip(_REPLACEMENT)
        last = tokenizer.decode(tail[len(tail) - keep // 2 :]).lstrip(_REPLACEMENT)
        # Escaped once more: where the text is cut, a longer word may become the name of a tag.
        text = escape(f"{first} [… {characters - len(first) - len(last)} characters cut …] {last}", tags)
        excess = len(tokenizer.encode(text)) - max_tokens
        if excess <= 0 or keep == 0:
            return text
        keep = max(0, keep - excess)
