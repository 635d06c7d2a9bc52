"""Reads what a server is, once, before anything is asked of it."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import msgspec

from icrl.errors import ConfigError, EngineError
from icrl.runtime.engines.sglang.client import Client
from icrl.runtime.engines.sglang.facts import OLDEST, ServerFacts, parse_version
from icrl.tokenizer import Tokenizer

__all__ = ["read_facts"]


class _Model(msgspec.Struct):
    """Of `/model_info`."""

    model_path: str
    tokenizer_path: str | None = None
    weight_version: str = "default"
    is_generation: bool = True


class _Server(msgspec.Struct):
    """Of `/server_info`."""

    version: str
    model_path: str | None = None
    enable_deterministic_inference: bool = False
    max_req_input_len: int | None = None


class _Card(msgspec.Struct):
    """One model of `/v1/models`."""

    max_model_len: int | None = None


class _Cards(msgspec.Struct):
    """Of `/v1/models`."""

    data: list[_Card]


async def read_facts(client: Client, *, tokenizer: Tokenizer | None = None, timeout_s: float = 30.0) -> ServerFacts:
    """Ask a server what it is.

    The context limit is what the server accepts, which is a few tokens less than what the model could hold.

    Args:
        client: Its connection.
        tokenizer: Tells the vocabulary's size where the model's `config.json` is not on this machine.
        timeout_s: Seconds for each of three questions.

    Raises:
        EngineError: It cannot be reached, is no SGLang server, is too old, or serves no language model.
        ConfigError: The vocabulary's size cannot be known.
    """
    server = _read(await client.get("/server_info", timeout_s=timeout_s), _Server, client, "/server_info")
    version = parse_version(server.version)
    if version < OLDEST:
        raise EngineError(_too_old(server.version), engine=client.address)
    model = _read(await client.get("/model_info", timeout_s=timeout_s), _Model, client, "/model_info")
    if not model.is_generation:
        raise EngineError(f"serves {model.model_path}, which does not generate", engine=client.address)
    cards = _read(await client.get("/v1/models", timeout_s=timeout_s), _Cards, client, "/v1/models")
    context_limit = next((card.max_model_len for card in cards.data if card.max_model_len), None)
    if context_limit is None:
        raise EngineError("/v1/models does not state max_model_len", engine=client.address)
    # `/model_info` names the directory of the last update from disk, which is gone by now.
    path = server.model_path or model.model_path
    return ServerFacts(
        address=client.address,
        version=version,
        model_path=path,
        tokenizer_path=model.tokenizer_path or path,
        vocab_size=await asyncio.to_thread(_vocabulary, path, tokenizer, client.address),
        context_limit=min(context_limit, server.max_req_input_len or context_limit),
        weight_version=model.weight_version,
        deterministic=server.enable_deterministic_inference,
    )


def _too_old(version: str) -> str:
    oldest = ".".join(map(str, OLDEST))
    return (
        f"runs SGLang {version}; {oldest} or later is needed, as older servers do not say which weights sampled "
        f"which token. Upgrade it: pip install 'sglang>={oldest}'"
    )


def _read(data: bytes, shape: type[Any], client: Client, path: str) -> Any:
    try:
        return msgspec.json.decode(data, type=shape)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise EngineError(f"{path} is not what an SGLang server says: {error}", engine=client.address) from error


def _vocabulary(model: str, tokenizer: Tokenizer | None, address: str) -> int:
    """Return the number of rows of the model's embedding; one id beyond them kills the server."""
    for path in _configs(model):
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        size = {**config, **config.get("text_config", {})}.get("vocab_size")
        if isinstance(size, int):
            return size
    if tokenizer is not None:
        return tokenizer.vocab_size
    raise ConfigError(
        f"tokenizer: {address} serves {model!r}, whose config.json is not on this machine, so the vocabulary's size is "
        f"unknown; pass the model's tokenizer, or fetch its files: hf download {model} --include '*.json'"
    )


def _configs(model: str) -> list[Path]:
    """Return where the model's configuration may be: in its directory, or in the hub's cache."""
    if Path(model).is_dir():
        return [Path(model) / "config.json"]
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "huggingface"
    hub = Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub").expanduser()
    if model.count("/") > 1:
        return []
    folder = hub / f"models--{model.replace('/', '--')}"
    return sorted(folder.glob("snapshots/*/config.json"))
