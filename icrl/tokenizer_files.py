"""Reading a Hugging Face tokenizer: `tokenizer.json`, its settings, chat templates and end tokens."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Plain

from icrl.errors import ConfigError
from icrl.rendered import AddedToken, AddedTokens

__all__ = ["TokenizerFiles", "find_tokenizer_files"]

_PATTERNS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.*",
    "additional_chat_templates/*",
    "config.json",
    "generation_config.json",
)


@dataclass(frozen=True, kw_only=True)
class TokenizerFiles:
    """What the files of a tokenizer say."""

    name: str
    """For messages: the model's name or path."""
    pipeline: Mapping[str, Any]
    """Contents of `tokenizer.json`."""
    settings: Mapping[str, Any]
    """Contents of `tokenizer_config.json`, `special_tokens_map.json` underneath."""
    templates: Mapping[str, str]
    """Jinja sources by name; the one to use is called `default`."""
    model: tuple[Mapping[str, Any], ...]
    """Contents of `generation_config.json` and `config.json`, as far as they exist."""

    @cached_property
    def added(self) -> tuple[AddedToken, ...]:
        """The added tokens."""
        fields = ("id", "content", "special", "lstrip", "rstrip")
        tokens = self.pipeline.get("added_tokens", ())
        return tuple(AddedToken(**{key: token[key] for key in fields}) for token in tokens)

    @cached_property
    def added_tokens(self) -> AddedTokens:
        """The added tokens, ready to be found in text."""
        return AddedTokens(self.added)

    @cached_property
    def plain(self) -> Plain:
        """The tokenizer without its added tokens, without NFC normalisation, padding, truncation and decoration."""
        stripped = {**self.pipeline, "added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
        if (self.pipeline.get("normalizer") or {}).get("type") == "NFC":
            stripped["normalizer"] = None
        try:
            return Plain.from_str(json.dumps(stripped))
        except Exception as error:  # the library raises nothing more specific
            raise ConfigError(f"tokenizer: tokenizer.json of {self.name} is damaged ({error})") from error

    @property
    def byte_level(self) -> bool:
        """Whether every token stands for fixed bytes."""
        return (self.pipeline.get("decoder") or {}).get("type") == "ByteLevel"

    @property
    def variables(self) -> dict[str, str]:
        """The named tokens that chat templates may write, such as `bos_token`."""
        named = {key: _content(value) for key, value in self.settings.items() if key.endswith("_token")}
        return {key: value for key, value in named.items() if value is not None}

    @property
    def eos_ids(self) -> frozenset[int]:
        """The ids that the model's settings and the tokenizer's name as end of generation."""
        found = {i for settings in self.model for i in _ids(settings.get("eos_token_id"))}
        return frozenset(found | set(self._named("eos_token")))

    @property
    def pad_id(self) -> int | None:
        """The id that fills up batches, where one is named."""
        named = (*self._named("pad_token"), *(i for s in self.model for i in _ids(s.get("pad_token_id"))))
        return next(iter(named), None)

    def _named(self, key: str) -> list[int]:
        content = self.variables.get(key)
        return [token.id for token in self.added if token.content == content]


def find_tokenizer_files(source: str | PathLike[str]) -> TokenizerFiles:
    """Read a tokenizer's files from a directory, or from the Hugging Face hub by name.

    Args:
        source: A directory, or a name such as `Qwen/Qwen3-0.6B`.

    Raises:
        ConfigError: There is no such directory or name, or a file is missing or damaged.
    """
    directory = Path(source).expanduser()
    if not directory.is_dir():
        directory = _fetch(str(source))
    if not (directory / "tokenizer.json").is_file():
        raise ConfigError(f"tokenizer: {str(source)!r} has no tokenizer.json; save one with `save_pretrained` there")
    pipeline, settings = _read(directory / "tokenizer.json"), _read(directory / "tokenizer_config.json")
    return TokenizerFiles(
        name=str(source),
        pipeline=pipeline,
        settings=_read(directory / "special_tokens_map.json") | settings,
        templates=dict(_templates(directory, settings.get("chat_template"))),
        model=tuple(_read(directory / f"{name}.json") for name in ("generation_config", "config")),
    )


def _fetch(name: str) -> Path:
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise ConfigError(f"tokenizer: {name!r} is neither a directory here nor a hub name such as 'Qwen/Qwen3-0.6B'")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(_PATTERNS)))
    except Exception as error:  # the hub client raises its own, the HTTP library's and the system's errors
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ConfigError(f"tokenizer: {name!r} is no directory here and could not be fetched ({reason})") from error


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"tokenizer: {path} cannot be read ({error})") from error
    if not isinstance(content, dict):
        raise ConfigError(f"tokenizer: {path} is not a JSON object")
    return content


def _templates(directory: Path, setting: Any) -> Iterator[tuple[str, str]]:
    """Find chat templates in the order in which they take effect: later ones replace earlier ones."""
    if isinstance(setting, str):
        yield "default", setting
    elif isinstance(setting, list):
        yield from ((entry["name"], entry["template"]) for entry in setting)
    for path in sorted((directory / "additional_chat_templates").glob("*.jinja")):
        yield path.stem, path.read_text(encoding="utf-8")
    path = directory / "chat_template.jinja"
    if path.is_file():
        yield "default", path.read_text(encoding="utf-8")


def _content(value: Any) -> str | None:
    """Return a named token's characters; settings hold them bare or as an object."""
    content = value.get("content") if isinstance(value, Mapping) else value
    return content if isinstance(content, str) else None


def _ids(value: Any) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, list) else (value,) if isinstance(value, int) else ()
