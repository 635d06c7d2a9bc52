"""From HTML to text: by trafilatura in a process that can be killed, or else without its tags and a notice."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from html import unescape
from typing import Any

from icrl.errors import ConfigError
from icrl.imports import require
from icrl.runtime.workers import RemoteError, WorkerDied, Workers

__all__ = ["MAX_HTML_CHARS", "ReadableText", "Reader", "make_extractor", "strip_tags"]

MAX_HTML_CHARS = 1_000_000
_MAX_STRIPPED_CHARS = 200_000
_MEMORY_MB = 2048
_SILENT = frozenset({"script", "style", "noscript", "template", "svg", "head"})
_TAG_NAME = re.compile(r"/?([a-zA-Z][a-zA-Z0-9]{0,20})")
_BLOCK = frozenset(
    {"p", "div", "br", "li", "tr", "td", "th", "pre", "ul", "ol", "dt", "dd", "table", "section", "article"}
    | {f"h{level}" for level in range(1, 7)}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadableText:
    """What a page says, still foreign.

    Example:
        >>> ReadableText(title="Rikor", text="Its code is 113.", notice="").title
        'Rikor'
    """

    title: str
    """May be empty."""
    text: str
    """The main text."""
    notice: str
    """What the reader should know about how it was made; empty if all went well."""


class Reader:
    """Extracts text in processes of its own, each of which is killed when a page takes it too long.

    Args:
        processes: Pages read at once.
        timeout_s: Seconds for one page.

    Raises:
        ConfigError: A limit is not positive.
        MissingExtraError: trafilatura is not installed.

    Example:
        >>> async def read() -> ReadableText:
        ...     reader = Reader(processes=1)
        ...     try:
        ...         return await reader.read("<p>Rikor's code is 113.</p>", deadline=time.monotonic() + 60.0)
        ...     finally:
        ...         await reader.aclose()
        >>> asyncio.run(read()).text
        "Rikor's code is 113."
    """

    def __init__(self, *, processes: int = 2, timeout_s: float = 5.0) -> None:
        require("trafilatura", extra="web")
        if not timeout_s > 0:
            raise ConfigError(f"timeout_s: must be > 0 seconds, not {timeout_s!r}")
        self._processes = processes
        self._timeout_s = timeout_s
        self._workers = Workers(f"{__name__}:make_extractor", processes=processes, memory_mb=_MEMORY_MB, name="reader")
        self._is_warm = False

    async def read(self, html: str, *, deadline: float) -> ReadableText:
        """Extract the main text; where that fails, all text between the tags with a notice.

        Args:
            html: The page; what lies beyond `MAX_HTML_CHARS` is not looked at.
            deadline: Monotonic time by which the text is needed.
        """
        html = html[:MAX_HTML_CHARS].encode("utf-8", "replace").decode()
        try:
            await self._warm_up(deadline)
            timeout_s = min(self._timeout_s, deadline - time.monotonic())
            title, text = await self._workers.run(html, timeout_s=timeout_s)
        except TimeoutError:
            problem = "took too long"
        except (WorkerDied, RemoteError):
            problem = "failed"
        else:
            if text:
                return ReadableText(title=title, text=text, notice="")
            problem = "found none"
        notice = f"(Extraction of the main text {problem}; this is everything between the page's tags.)"
        return ReadableText(title="", text=strip_tags(html), notice=notice)

    async def aclose(self) -> None:
        """End the processes; a later page starts new ones."""
        self._is_warm = False
        await self._workers.aclose()

    async def _warm_up(self, deadline: float) -> None:
        """Start the processes now, so that the time this takes is not counted against a page."""
        if not self._is_warm:
            timeout_s = max(0.001, deadline - time.monotonic())
            await asyncio.gather(*(self._workers.run("", timeout_s=timeout_s) for _ in range(self._processes)))
            self._is_warm = True


def make_extractor() -> Callable[[Any], tuple[str, str]]:
    """Return what a worker process does: HTML to title and main text.

    Example:
        >>> make_extractor()("")
        ('', '')
    """
    from trafilatura import extract, load_html

    def run(page: str) -> tuple[str, str]:
        tree = load_html(page) if page else None
        if tree is None:
            return "", ""
        title = tree.findtext(".//title") or ""
        text = extract(tree, include_comments=False, include_tables=True, include_links=False) or ""
        return title.strip(), text

    # What the libraries build when they are first used is built before the first page.
    run("<p>warm</p>")
    return run


def strip_tags(html: str) -> str:
    """Leave out tags, scripts and styles, in linear time whatever the page is made of.

    Example:
        >>> strip_tags("<style>p {}</style><p>Rikor &amp; <b>Nebar</b></p>")
        'Rikor & Nebar'
    """
    first, *parts = html[:_MAX_STRIPPED_CHARS].split("<")
    lines, silenced_by = [first], ""
    for part in parts:
        tag, _, text = part.partition(">")
        named = _TAG_NAME.match(tag)
        name = named[1].lower() if named else ""
        is_end = tag.startswith("/")
        if silenced_by and not (is_end and name == silenced_by):
            continue
        silenced_by = ""
        if name in _SILENT and not is_end:
            silenced_by = name
        else:
            lines.append(f"\n{text}" if name in _BLOCK else text)
    return "\n".join(" ".join(line.split()) for line in unescape("".join(lines)).splitlines() if line.strip())
