"""From a model's name to everything a run needs: engine, tokenizer, dialect, tools."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from icrl.errors import ConfigError, DataError, nearest
from icrl.imports import import_attribute, require
from icrl.runtime.dialect import Dialect, find_dialect
from icrl.runtime.engines.local import LocalEngine, LocalEngineConfig
from icrl.runtime.engines.protocol import Engine
from icrl.runtime.settings import EMBEDDED, AgentSettings
from icrl.runtime.tools.tool import Tool
from icrl.runtime.tools.toolbox import Toolbox
from icrl.tokenizer import ChatTokenizer, Tokenizer
from icrl.trajectory import Segment
from icrl.types import Demonstration, Limits, Message

__all__ = ["Model", "find_model", "open_model", "open_tools"]

BUILT_IN_TOOLS = ("search",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """An opened model: what a `Run` is made of."""

    engine: Engine
    """Samples tokens."""
    tokenizer: Tokenizer
    """Encodes and decodes."""
    dialect: Dialect
    """Renders prompts and observations, finds calls and answers."""
    toolbox: Toolbox
    """Runs calls."""
    settings: AgentSettings
    """How the model wants to be asked."""
    owns_engine: bool
    """Whether closing the model closes the engine."""

    @property
    def limits(self) -> Limits:
        """When a run has to end."""
        return self.settings.limits

    def prompt(self, messages: Sequence[Message], demonstrations: Sequence[Demonstration]) -> tuple[Segment, ...]:
        """Render the prompt of a conversation."""
        return self.dialect.prompt(
            self.tokenizer,
            messages,
            tools=self.toolbox.specs,
            demonstrations=demonstrations,
            instruction=self.settings.instruction,
        )

    async def aclose(self) -> None:
        """Close the tools, and the engine where it was opened here."""
        try:
            await self.toolbox.aclose()
        finally:
            if self.owns_engine:
                await self.engine.aclose()


async def open_model(
    source: str | Path | Engine | None,
    *,
    settings: AgentSettings | None = None,
    dialect: Dialect | None = None,
    instruction: str | None = None,
    limits: Limits | None = None,
    tools: Sequence[Tool] | None = None,
    tokenizer: Tokenizer | None = None,
) -> Model:
    """Open a model and its tools.

    Args:
        source: A directory, a Hugging Face name, an engine, or `None` for the embedded model.
        settings: Replaces the settings stored with the model.
        dialect: Replaces the dialect that the settings name.
        instruction: Replaces the instruction.
        limits: Replaces the limits.
        tools: Replaces the tools that the settings name.
        tokenizer: Replaces the model's tokenizer; needed for an engine that has none.

    Raises:
        ConfigError: There is no such model, tool or index.
        DataError: The settings stored with the model, or the index, are damaged.
    """
    engine, its_tokenizer, stored = await asyncio.to_thread(_prepare, source, tokenizer)
    settings = settings or stored or AgentSettings()
    settings = replace(
        settings,
        instruction=settings.instruction if instruction is None else instruction,
        limits=limits or settings.limits,
    )
    model = Model(
        engine=engine,
        tokenizer=its_tokenizer,
        dialect=dialect or find_dialect(settings.dialect),
        toolbox=Toolbox(tools if tools is not None else await open_tools(settings)),
        settings=settings,
        owns_engine=engine is not source,
    )
    await _start(model)
    return model


async def _start(model: Model) -> None:
    """Load the weights now: what is wrong with a model shows before anything runs on it."""
    if isinstance(model.engine, LocalEngine):
        try:
            await model.engine.start()
        except BaseException:
            await model.aclose()
            raise


def _prepare(
    source: str | Path | Engine | None, tokenizer: Tokenizer | None
) -> tuple[Engine, Tokenizer, AgentSettings | None]:
    """Return an engine that has loaded nothing yet, its tokenizer, and the settings stored with the model."""
    if source is None or isinstance(source, str | Path):
        directory = find_model(source)
        tokenizer = tokenizer or ChatTokenizer.load(directory)
        config = LocalEngineConfig(model=str(directory))
        return LocalEngine(config, tokenizer=tokenizer), tokenizer, AgentSettings.load(directory)
    tokenizer = tokenizer or getattr(source, "tokenizer", None)
    if tokenizer is None:
        raise ConfigError(f"tokenizer: engine {source.info.name!r} has none; pass tokenizer=… to the agent")
    return source, tokenizer, None


def find_model(source: str | Path | None) -> Path:
    """Return the directory of a model's files; a Hugging Face name is fetched into the hub's cache.

    Args:
        source: A model directory, a run directory of `icrl.train`, a Hugging Face name, or `None`.

    Raises:
        ConfigError: There is no such model.
    """
    from icrl.tiny import BASE_DIR

    if source is None:
        return BASE_DIR
    if str(source).startswith(("http://", "https://")):
        raise ConfigError(f"model: {str(source)!r} is an address; this version opens directories and hub names only")
    path = Path(source).expanduser()
    for directory in (path / "model", path):
        if (directory / "config.json").is_file():
            return directory
    if path.exists() or str(source).startswith((".", "/", "~")) or str(source).count("/") != 1:
        raise ConfigError(f"model: {str(source)!r} holds no model: there is no config.json.{_siblings(path)}")
    return _fetch(str(source))


def _siblings(path: Path) -> str:
    names = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    return nearest(path.name, names)


def _fetch(name: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ImportError as error:
        raise ConfigError(
            f"model: {name!r} is not a directory, and fetching needs: pip install 'icrl[train]'"
        ) from error
    try:
        patterns = ["*.json", "*.jinja", "*.safetensors"]
        return Path(snapshot_download(name, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"model: {name!r} is no directory here and could not be fetched ({reason})") from error


async def open_tools(settings: AgentSettings) -> list[Tool]:
    """Open the tools that the settings name.

    Raises:
        ConfigError: A tool or index does not exist.
        DataError: The embedded index cannot be written.
    """
    return [await _open_tool(name, settings) for name in settings.tools]


async def _open_tool(name: str, settings: AgentSettings) -> Tool:
    if name == "search":
        return await _open_search(settings)
    if ":" in name:
        return await asyncio.to_thread(_import_tool, name)
    raise ConfigError(
        f"tools: {name!r} is not one of {', '.join(BUILT_IN_TOOLS)}, nor a module:attribute."
        f"{nearest(name, BUILT_IN_TOOLS)}"
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
