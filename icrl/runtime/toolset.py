"""Tools by name: what settings, flags and requests write, opened.

search              passages of the search index that the settings name
python              a contained interpreter
module:attribute    a tool of your own
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from icrl.errors import ConfigError, DataError, nearest
from icrl.imports import import_attribute, require
from icrl.runtime.settings import EMBEDDED, AgentSettings
from icrl.runtime.tools.tool import Tool
from icrl.runtime.tools.toolbox import Toolbox

__all__ = ["BUILT_IN", "Tools", "open_toolbox", "open_tools"]

BUILT_IN = ("search",)
"""The tools that come with the package."""

Tools = Sequence[Tool | str] | Toolbox
"""Tools, names of tools, or a toolbox with a cache or a journal of its own."""


async def open_toolbox(tools: Tools, settings: AgentSettings) -> Toolbox:
    """Put tools behind one door; a toolbox is taken as it is.

    Raises:
        ConfigError: A tool or index does not exist.
        DataError: The embedded index cannot be written.
    """
    return tools if isinstance(tools, Toolbox) else Toolbox(await open_tools(tools, settings))


async def open_tools(tools: Sequence[Tool | str], settings: AgentSettings) -> list[Tool]:
    """Open the tools that are given by name; others are taken as they are.

    Raises:
        ConfigError: A tool or index does not exist.
        DataError: The embedded index cannot be written.
    """
    return [await _open(tool, settings) if isinstance(tool, str) else tool for tool in tools]


async def _open(name: str, settings: AgentSettings) -> Tool:
    if name == "search":
        return await _open_search(settings)
    if ":" in name:
        return await asyncio.to_thread(_import_tool, name)
    raise ConfigError(
        f"tools: {name!r} is not one of {', '.join(BUILT_IN)}, nor a module:attribute.{nearest(name, BUILT_IN)}"
    )


async def _open_search(settings: AgentSettings) -> Tool:
    from icrl.runtime.tools.index import Bm25Index
    from icrl.runtime.tools.search import Bm25Retriever, SearchTool

    require("numpy", "bm25s", extra="search")
    if settings.index is None:
        raise ConfigError("index: the search tool needs one; build it with `icrl index corpus.jsonl out/`")
    if settings.index == EMBEDDED:
        directory = await asyncio.to_thread(_embedded_index)
    else:
        directory = Path(settings.index)
    index = await asyncio.to_thread(Bm25Index.open, directory)
    return SearchTool(Bm25Retriever(index), k=settings.hits, separator=settings.hit_separator)


def _embedded_index() -> Path:
    """Return the index of the embedded corpus, which is built once into the user's cache."""
    from icrl.runtime.tools.index import build_index
    from icrl.tiny import CORPUS

    digest = hashlib.sha256(CORPUS.read_bytes()).hexdigest()[:12]
    directory = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "icrl" / f"embedded-{digest}"
    if not (directory / "index.json").is_file():
        try:
            build_index(CORPUS, directory, show_progress=False)
        except DataError as error:
            raise DataError(f"{error}; set XDG_CACHE_HOME to a directory that can be written") from error
    return directory


def _import_tool(name: str) -> Tool:
    found = import_attribute(name, setting="tools")
    if not isinstance(found, Tool):
        raise ConfigError(f"tools: {name!r} is not a tool; decorate the function with @icrl.tool")
    return found
