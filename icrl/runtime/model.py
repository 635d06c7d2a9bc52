"""From a model's name to everything a run needs: engine, tokenizer, dialect, tools."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from icrl.errors import ConfigError, nearest
from icrl.runtime.dialect import Dialect, find_dialect
from icrl.runtime.engines.address import is_address, open_address
from icrl.runtime.engines.local import LocalEngine, LocalEngineConfig
from icrl.runtime.engines.member import Startable
from icrl.runtime.engines.protocol import Engine
from icrl.runtime.settings import AgentSettings
from icrl.runtime.tools.offer import Offer
from icrl.runtime.tools.toolbox import Toolbox
from icrl.runtime.toolset import ToolingConfig, Tools, open_toolbox
from icrl.tokenizer import ChatTokenizer, Tokenizer
from icrl.trajectory import Segment
from icrl.types import Demonstration, Limits, Message

__all__ = ["Model", "find_model", "open_model"]


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

    @property
    def offer(self) -> Offer:
        """What a run may call unless it is told otherwise: every tool of the toolbox."""
        return Offer(own=self.toolbox.specs)

    def prompt(
        self, messages: Sequence[Message], demonstrations: Sequence[Demonstration], offer: Offer | None = None
    ) -> tuple[Segment, ...]:
        """Render the prompt of a conversation.

        Args:
            messages: The conversation.
            demonstrations: Worked examples to show.
            offer: What may be called, if not all tools of the toolbox and nothing else.
        """
        offer = offer or self.offer
        return self.dialect.prompt(
            self.tokenizer,
            messages,
            tools=offer.own,
            foreign=offer.client,
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
    limits: Limits | Callable[[Limits], Limits] | None = None,
    tools: Tools | None = None,
    index: str | None = None,
    tooling: ToolingConfig | None = None,
    tokenizer: Tokenizer | str | Path | None = None,
) -> Model:
    """Open a model and its tools.

    Args:
        source: A directory, a Hugging Face name, an address (see `icrl.runtime.engines.address`), an engine, or `None`
            for the embedded model.
        settings: Replaces the settings stored with the model.
        dialect: Replaces the dialect that the settings name.
        instruction: Replaces the instruction.
        limits: Replaces the limits, or makes new ones of the stored ones.
        tools: Replaces the tools that the settings name: tools, names of tools, or a toolbox.
        index: Replaces the search index that the settings name.
        tooling: A cache and a journal for the tools.
        tokenizer: Replaces the model's tokenizer: a tokenizer, its directory or its name. Needed for an engine that has
            none, and for a server whose tokenizer is not on this machine.

    Raises:
        ConfigError: There is no such model, tool or index, or the address is not what it seems.
        DataError: The settings stored with the model, or the index, are damaged.
        EngineError: Nobody answers at the address.
    """
    engine, its_tokenizer, stored = await _connect_or_prepare(source, tokenizer)
    settings = settings or stored or AgentSettings()
    settings = replace(
        settings,
        instruction=settings.instruction if instruction is None else instruction,
        limits=limits(settings.limits) if callable(limits) else limits or settings.limits,
        index=index or settings.index,
    )
    owns_engine = engine is not source
    try:
        model = Model(
            engine=engine,
            tokenizer=its_tokenizer,
            dialect=dialect or find_dialect(settings.dialect),
            toolbox=await open_toolbox(settings.tools if tools is None else tools, settings, tooling),
            settings=settings,
            owns_engine=owns_engine,
        )
    except BaseException:
        if owns_engine:
            await engine.aclose()
        raise
    await _start(model)
    return model


async def _start(model: Model) -> None:
    """Load the weights or connect now: what is wrong with a model shows before anything runs on it."""
    if isinstance(model.engine, Startable):
        try:
            await model.engine.start()
        except BaseException:
            await model.aclose()
            raise


async def _connect_or_prepare(
    source: str | Path | Engine | None, tokenizer: Tokenizer | str | Path | None
) -> tuple[Engine, Tokenizer, AgentSettings | None]:
    """Return an engine, its tokenizer, and the settings stored with the model."""
    if isinstance(source, str) and is_address(source):
        connection = await open_address(source, tokenizer=tokenizer)
        try:
            directory = connection.directory
            stored = None if directory is None else await asyncio.to_thread(AgentSettings.load, directory)
        except BaseException:
            await connection.engine.aclose()
            raise
        return connection.engine, connection.tokenizer, stored
    return await asyncio.to_thread(_prepare, source, tokenizer)


def _prepare(
    source: str | Path | Engine | None, tokenizer: Tokenizer | str | Path | None
) -> tuple[Engine, Tokenizer, AgentSettings | None]:
    """Return an engine that has loaded nothing yet, its tokenizer, and the settings stored with the model."""
    if isinstance(tokenizer, str | Path):
        tokenizer = ChatTokenizer.load(tokenizer)
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
    if is_address(source):
        raise ConfigError(f"model: {str(source)!r} is an address; here a directory or a hub name is needed")
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
