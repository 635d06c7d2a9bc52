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
from icrl.runtime.tools.tool import Tool, close
from icrl.runtime.tools.toolbox import Toolbox

__all__ = ["BUILT_IN", "Tools", "open_toolbox", "open_tools"]

BUILT_IN = ("search", "python", "web", "fetch", "mcp")
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
    opened: list[Tool] = []
    try:
        for tool in tools:
            opened += await _open(tool, settings) if isinstance(tool, str) else [tool]
    except BaseException:
        for tool in opened:
            await close(tool)
        raise
    return opened


async def _open(name: str, settings: AgentSettings) -> Sequence[Tool]:
    kind, colon, rest = name.partition(":")
    match kind:
        case "search" if not colon:
            return [await _open_search(settings)]
        case "python" if not colon:
            return [_open_python()]
        case "web":
            return [await asyncio.to_thread(_open_web, name)]
        case "fetch" if not colon:
            return [_open_fetch()]
        case "mcp" if rest:
            return await _open_mcp(rest)
    if colon and rest:
        return [await asyncio.to_thread(_import_tool, name)]
    raise ConfigError(
        f"tools: {name!r} is not one of {', '.join(BUILT_IN)}, nor a module:attribute.{nearest(name, BUILT_IN)}"
    )


async def _open_search(settings: AgentSettings) -> Tool:
    from icrl.runtime.tools.retrievers.opening import open_retriever
    from icrl.runtime.tools.search import SearchTool

    require("numpy", "bm25s", extra="search")
    if settings.index is None:
        raise ConfigError("index: the search tool needs one; build it with `icrl index corpus.jsonl out/`")
    where = await asyncio.to_thread(_embedded_index) if settings.index == EMBEDDED else settings.index
    retriever = await asyncio.to_thread(open_retriever, where)
    return SearchTool(retriever, k=settings.hits, separator=settings.hit_separator)


def _open_python() -> Tool:
    from icrl.runtime.sandbox import Sandbox
    from icrl.runtime.tools.python import PythonTool

    require("RestrictedPython", extra="sandbox")
    return PythonTool(Sandbox())


def _open_web(name: str) -> Tool:
    from icrl.runtime.tools.web.opening import open_web

    return open_web(name)


def _open_fetch() -> Tool:
    from icrl.runtime.tools.web.fetch import FetchTool

    require("trafilatura", extra="web")
    return FetchTool()


async def _open_mcp(server: str) -> Sequence[Tool]:
    from icrl.runtime.tools.mcp import open_mcp

    return await open_mcp(server)


def _embedded_index() -> Path:
    """Return the index of the embedded corpus, which is built once into the user's cache."""
    from icrl.runtime.tools.index import build_index
    from icrl.runtime.tools.index_meta import VERSION
    from icrl.tiny import CORPUS

    digest = hashlib.sha256(CORPUS.read_bytes()).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
    directory = cache / "icrl" / f"embedded-{VERSION}-{digest}"
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
