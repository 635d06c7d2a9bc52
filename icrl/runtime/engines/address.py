"""From an address to an engine: one SGLang server, several as a pool, or any OpenAI-compatible endpoint.

http://127.0.0.1:30000                          an SGLang server
http://10.0.0.1:30000,http://10.0.0.2:30000     several, used as one
openai:https://api.example.com/v1#model         an endpoint that speaks text only, for running agents
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast
from urllib.parse import urlsplit

from icrl.errors import ConfigError, EngineError
from icrl.runtime.engines.adapter import AdapterMode
from icrl.runtime.engines.pool import EnginePool, PoolConfig
from icrl.runtime.engines.protocol import Engine, PauseMode
from icrl.tokenizer import ChatTokenizer, Tokenizer

if TYPE_CHECKING:
    from icrl.runtime.engines.sglang.client import Client
    from icrl.runtime.engines.sglang.config import SGLangConfig, TransportName
    from icrl.runtime.engines.sglang.engine import SGLangEngine
    from icrl.runtime.engines.sglang.facts import ServerFacts

__all__ = ["Connection", "connect", "is_address", "name_of", "open_address", "read_urls"]

KEY_VARIABLE = "ICRL_ENGINE_KEY"
"""Environment variable with the key that SGLang servers ask for."""

OPENAI = "openai:"
ROUTER = "router:"


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """An engine that is somewhere else."""

    engine: Engine
    """It, connected."""
    tokenizer: Tokenizer
    """Its model's."""
    directory: Path | None
    """The model's directory, where that is on this machine."""


def is_address(source: object) -> bool:
    """Say whether a model's name is an address.

    Example:
        >>> [is_address(s) for s in ("http://127.0.0.1:30000", "openai:http://h/v1", "Qwen/Qwen3-0.6B", None)]
        [True, True, False, False]
    """
    return isinstance(source, str) and source.startswith(("http://", "https://", OPENAI, ROUTER))


def read_urls(address: str) -> tuple[str, ...]:
    """Part the addresses of servers that are joined by commas.

    Raises:
        ConfigError: One is no address of a server, or stands there twice.

    Example:
        >>> read_urls("http://10.0.0.1:30000, http://10.0.0.2:30000/")
        ('http://10.0.0.1:30000', 'http://10.0.0.2:30000')
    """
    urls = tuple(part.strip().rstrip("/") for part in address.split(",") if part.strip())
    for url in urls:
        parts = urlsplit(url.removeprefix(ROUTER))
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"address: {url!r} is no server's address such as 'http://127.0.0.1:30000'")
        if parts.path or parts.query or parts.fragment:
            raise ConfigError(
                f"address: {url!r} has a path; a server's address ends with its port, and an OpenAI-compatible "
                f"endpoint is written '{OPENAI}{url}'"
            )
    twice = [url for url in urls if urls.count(url) > 1]
    if not urls or twice:
        raise ConfigError(f"address: {address!r} names {twice[0]!r} twice" if twice else "address: is empty")
    return urls


def name_of(address: str) -> str:
    """Name what is behind an address, for clients that want a model's name.

    Example:
        >>> name_of("openai:https://api.example.com/v1#large"), name_of("http://127.0.0.1:30000,http://127.0.0.1:30001")
        ('large', '127.0.0.1:30000')
    """
    url, _, model = address.removeprefix(OPENAI).removeprefix(ROUTER).partition("#")
    return model or urlsplit(url.split(",")[0].strip()).netloc


async def connect(
    address: str,
    *,
    tokenizer: Tokenizer | str | Path | None = None,
    api_key: str | None = None,
    pool: PoolConfig | None = None,
    engine: SGLangConfig | None = None,
    transport: TransportName = "disk",
    adapters: AdapterMode = "merged",
    pause_mode: PauseMode = "in_place",
    flush: bool = True,
    verify: bool = False,
    directory: Path | None = None,
) -> tuple[EnginePool, Tokenizer]:
    """Connect to SGLang servers, or to routers before them.

    Args:
        address: One, or several joined by commas; `router:` before one with an sglang-router (weights from disk only).
        tokenizer: The model's: a tokenizer, its directory or its name; by default what the servers say.
        api_key: By default the variable ICRL_ENGINE_KEY.
        pool: How patient the pool is.
        engine: How each server is spoken to.
        transport: How weights travel, if any do.
        adapters: Whether they are whole weights, or LoRA adapters by themselves (`lora`).
        pause_mode: What becomes of running requests while weights change.
        flush: Drop cached keys and values at an update.
        verify: Compare checksums after an update.
        directory: Where weights are written for the `disk` transport.

    Returns:
        The servers as one engine, which whoever called closes, and its tokenizer.

    Raises:
        ConfigError: An address is wrong, something else answers there, or the tokenizer cannot be had.
        EngineError: No server answers, or one cannot be used.
    """
    from icrl.runtime.engines.sglang.engine import SGLangEngine

    if ROUTER in address:
        _check_routed(transport, adapters)
    known = await _loaded(tokenizer)
    members = [
        SGLangEngine(
            _client(url, api_key or os.environ.get(KEY_VARIABLE)),
            tokenizer=known,
            transport=transport,
            adapters=adapters,
            pause_mode=pause_mode,
            flush=flush,
            verify=verify,
            directory=directory,
            config=engine,
        )
        for url in read_urls(address)
    ]
    try:
        return await _pooled(members, known, pool)
    except BaseException:
        await asyncio.gather(*(member.aclose() for member in members))
        raise


async def _pooled(
    members: Sequence[SGLangEngine], tokenizer: Tokenizer | None, config: PoolConfig | None
) -> tuple[EnginePool, Tokenizer]:
    errors = await asyncio.gather(*map(_start, members), return_exceptions=True)
    for error in errors:
        if isinstance(error, ConfigError):
            raise error
    tokenizer = tokenizer or await _tokenizer_of(members, errors)
    pool = EnginePool(members, tokenizer=tokenizer, config=config)
    try:
        await pool.start()
        _check(tokenizer, pool)
    except BaseException:
        await pool.aclose()
        raise
    return pool, tokenizer


async def open_address(address: str, *, tokenizer: Tokenizer | str | Path | None = None) -> Connection:
    """Connect to whatever an address names.

    Args:
        address: See this module.
        tokenizer: As for `connect`; an OpenAI-compatible endpoint has its own and takes none.

    Raises:
        ConfigError: As `connect`; or the endpoint serves several models and none was named.
        EngineError: Nobody answers.
    """
    if address.startswith(OPENAI):
        from icrl.runtime.engines.openai import OpenAIEngine

        if tokenizer is not None:
            raise ConfigError("tokenizer: an OpenAI-compatible endpoint is sent text, and takes no tokenizer")
        engine = OpenAIEngine.at(address.removeprefix(OPENAI))
        try:
            await engine.start()
        except BaseException:
            await engine.aclose()
            raise
        return Connection(engine=engine, tokenizer=engine.tokenizer, directory=None)
    pool, found = await connect(address, tokenizer=tokenizer)
    try:
        facts = _facts([member.server for member in pool.members])[0]
        directory = await asyncio.to_thread(_directory, facts.model_path)
    except BaseException:
        await pool.aclose()
        raise
    return Connection(engine=pool, tokenizer=found, directory=directory)


def _check_routed(transport: TransportName, adapters: AdapterMode) -> None:
    if transport != "disk":
        raise ConfigError(f"transport: {transport!r} does not reach servers behind a router; use 'disk', or name them")
    if adapters == "lora":
        raise ConfigError("adapters: 'lora' does not reach servers behind a router; name them")


async def _loaded(tokenizer: Tokenizer | str | Path | None) -> Tokenizer | None:
    if isinstance(tokenizer, str | Path):
        return await asyncio.to_thread(ChatTokenizer.load, tokenizer)
    return tokenizer


def _client(url: str, api_key: str | None) -> Client:
    from icrl.runtime.engines.sglang.client import Client
    from icrl.runtime.engines.sglang.router import RouterClient

    kind = RouterClient if url.startswith(ROUTER) else Client
    return kind(url.removeprefix(ROUTER), api_key=api_key)


async def _start(member: SGLangEngine) -> None:
    try:
        await member.start()
    except EngineError as error:
        if error.status != 404:
            raise
        url = member.client.address
        raise ConfigError(
            f"address: {url} is no SGLang server ({error.message}); an OpenAI-compatible endpoint is written "
            f"'{OPENAI}{url}/v1'"
        ) from error


async def _tokenizer_of(members: Sequence[SGLangEngine], errors: Sequence[BaseException | None]) -> Tokenizer:
    """Load the tokenizer that the first server that answered says it has.

    Raises:
        ConfigError: It is not on this machine.
        EngineError: No server answered.
    """
    facts = next(iter(_facts(members)), None)
    if facts is None:
        raise next(error for error in errors if error is not None)
    try:
        return await asyncio.to_thread(ChatTokenizer.load, facts.tokenizer_path)
    except ConfigError as error:
        raise ConfigError(
            f"{error}; this is what {facts.address} says its tokenizer is. Pass one that is here: --tokenizer "
            "DIR_OR_NAME, or tokenizer=…"
        ) from error


def _directory(path: str) -> Path | None:
    return directory if (directory := Path(path)).is_dir() else None


def _facts(servers: Sequence[object]) -> list[ServerFacts]:
    """Return what those servers said of themselves that were reached."""
    found = []
    for server in servers:
        with suppress(EngineError):
            found.append(cast("SGLangEngine", server).facts)
    return found


def _check(tokenizer: Tokenizer, pool: EnginePool) -> None:
    if tokenizer.vocab_size > pool.info.vocab_size:
        raise ConfigError(
            f"tokenizer: {tokenizer.name} has {tokenizer.vocab_size} tokens, the model of {pool.info.name} only "
            f"{pool.info.vocab_size}; pass the tokenizer of the model that is served"
        )
