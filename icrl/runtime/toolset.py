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
from dataclasses import dataclass
from pathlib import Path

from icrl.errors import ConfigError, DataError, nearest
from icrl.imports import import_attribute, require
from icrl.runtime.settings import EMBEDDED, AgentSettings
from icrl.runtime.tools.cache import ToolCache
from icrl.runtime.tools.journal import Journal, Recorder, Replayer
from icrl.runtime.tools.tool import Tool, close
from icrl.runtime.tools.toolbox import Toolbox

__all__ = ["BUILT_IN", "ToolingConfig", "Tools", "open_toolbox", "open_tools"]

BUILT_IN = ("search", "python", "web", "fetch", "mcp")
"""The tools that come with the package."""

MEMORY = "memory"
"""Name of the cache that ends with the process."""

Tools = Sequence[Tool | str] | Toolbox
"""Tools, names of tools, or a toolbox with a cache or a journal of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolingConfig:
    """What stands around the tools: a cache of their answers, or a journal of every call."""

    cache: str | None = None
    """Keeps answers of repeatable tools: `memory`, or a file that later runs share."""
    record: Path | None = None
    """Write every call and its answer to this new file."""
    replay: Path | None = None
    """Answer every call from such a file; no tool runs."""

    def __post_init__(self) -> None:
        if self.record is not None and self.replay is not None:
            raise ConfigError("tooling.record: a replayed run has nothing to record; give tooling.replay alone")
        if self.cache is not None and self.replay is not None:
            raise ConfigError("tooling.cache: a replayed run calls nothing to keep; give tooling.replay alone")


async def open_toolbox(tools: Tools, settings: AgentSettings, tooling: ToolingConfig | None = None) -> Toolbox:
    """Put tools behind one door; a toolbox is taken as it is.

    Args:
        tools: Tools, names of tools, or a toolbox.
        settings: What the names refer to.
        tooling: A cache and a journal, for tools that are no toolbox yet.

    Raises:
        ConfigError: A tool, an index or a journal does not exist, or there is a recording already.
        DataError: The embedded index cannot be written, or a journal is damaged.
    """
    if isinstance(tools, Toolbox):
        return tools
    tooling = tooling or ToolingConfig()
    cache = None if tooling.cache is None else ToolCache(None if tooling.cache == MEMORY else Path(tooling.cache))
    if cache is not None:
        await cache.open()
    journal = await asyncio.to_thread(_open_journal, tooling)
    return Toolbox(await open_tools(tools, settings), cache=cache, journal=journal)


def _open_journal(tooling: ToolingConfig) -> Journal | None:
    if tooling.record is not None:
        return Recorder(tooling.record)
    return None if tooling.replay is None else Replayer(tooling.replay)


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

    require("numpy", "numba", extra="search")
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
