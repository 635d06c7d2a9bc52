"""What can be set about a server; the flags of `icrl serve` are made from it."""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro

from icrl.errors import ConfigError, DataError
from icrl.tiny import DEMONSTRATIONS
from icrl.types import Limits

__all__ = ["AdmissionConfig", "LimitsConfig", "ServeConfig", "is_loopback"]

KEY_VARIABLE = "ICRL_API_KEY"
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s?#@]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionConfig:
    """How much a server takes on; whatever a client can grow has a bound here."""

    max_running: int = 64
    """Requests that are answered at once."""
    max_waiting: int = 256
    """Requests that may wait for a slot; further ones are refused with 429."""
    max_per_key: int = 64
    """Requests of one key (or, without keys, of one address) at once, waiting ones included."""
    requests_per_minute: float | None = None
    """Answers that one key (or address) may ask for in a minute; no bound if not given."""
    max_connections: int = 4096
    """Connections at once, idle ones included; further ones are turned away with 503."""
    max_body_bytes: int = 1_048_576
    """Bytes of a request's body."""
    max_messages: int = 256
    """Messages or input items of a request."""
    max_choices: int = 8
    """Largest `n`."""
    request_timeout_s: float = 300.0
    """Seconds that a request may take, waiting included."""
    header_timeout_s: float = 10.0
    """Seconds in which a client has to send its request."""
    write_timeout_s: float = 30.0
    """Seconds in which a client has to read some of what was sent before it is cut off."""

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if value is not None and not value > 0 and not (name == "max_waiting" and value == 0):
                raise ConfigError(f"admission.{name}: must be > 0, not {value!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitsConfig:
    """Limits of one answer, in place of the model's own.

    Example:
        >>> LimitsConfig(max_turns=3).over(Limits(max_tokens=96)).max_tokens
        96
    """

    max_turns: int | None = None
    """Engine calls."""
    max_tokens: int | None = None
    """Tokens of an answer, thoughts and tool results included."""
    max_tool_calls: int | None = None
    """Calls of tools."""
    max_observation_tokens: int | None = None
    """Tokens of one tool result."""
    deadline_s: float | None = None
    """Seconds."""

    def __post_init__(self) -> None:
        try:
            self.over(Limits())
        except DataError as error:
            raise ConfigError(f"limits.{error}") from None

    def over(self, own: Limits) -> Limits:
        """Return limits with those replaced that are set here."""
        values = {name: getattr(self, name) for name in self.__slots__}
        return replace(own, **{name: value for name, value in values.items() if value is not None})


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeConfig:
    """Serve a model with its tools."""

    model: Annotated[str | None, tyro.conf.Positional] = None
    """Hugging Face name, directory, run directory, or address of a server (`http://127.0.0.1:30000`, several joined by
    commas; `openai:URL#MODEL`); the embedded base model if not given."""
    tokenizer: str | None = None
    """Directory or name of the model's tokenizer, where a server's own is not on this machine."""
    name: str | None = None
    """What clients call the model; the model's own name if not given."""
    host: str = "127.0.0.1"
    """Address to listen on. Anything but loopback needs an API key, or `--insecure`."""
    port: int = 8000
    """Port to listen on; 0 takes a free one."""
    shots: int = 0
    """Demonstrations to show in every prompt; a model that was not trained to call tools needs some."""
    demos: Path = DEMONSTRATIONS
    """YAML or JSONL of demonstrations; the embedded world's by default."""
    tools: tuple[str, ...] | None = None
    """Tools to offer: `search`, `python`, `web`, `fetch`, `mcp:…`, `module:attribute`; the model's own by default."""
    index: str | None = None
    """Search index, where the model's own is not wanted: a directory or a retriever's address."""
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    """Limits of one answer; by default the model's own. Requests may lower them, never raise them."""
    api_key_file: Path | None = None
    """File with one accepted key a line; the variable ICRL_API_KEY gives one, too."""
    insecure: bool = False
    """Serve other machines without a key."""
    cors_origin: tuple[str, ...] = ()
    """Origins whose pages may call this server, such as `https://example.com`, or `*`; only its own page by default."""
    admission: AdmissionConfig = field(default_factory=AdmissionConfig)
    """How much it takes on."""
    heartbeat_s: float = 15.0
    """Seconds of silence after which a stream sends a comment."""
    grace_s: float = 30.0
    """Seconds that running requests get to finish after SIGTERM."""
    store_entries: int = 1000
    """Responses kept for `previous_response_id`."""
    store_bytes: int = 268_435_456
    """Bytes that they may take together."""
    store_ttl_s: float = 3600.0
    """Seconds that they are kept."""
    log_trajectories: Path | None = None
    """Also write every trajectory to this JSONL file (rotated); off by default, because it holds what people wrote."""
    log_redact: bool = False
    """Write only token counts, timings and stop reasons there, no text and no tokens."""
    telemetry: bool = False
    """Make OpenTelemetry spans (the `otel` extra), sent wherever the process' tracer provider sends them."""
    access_log: bool = True
    """Write one JSON line a request to standard error."""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port: must be from 0 to 65535, not {self.port}")
        for name in ("heartbeat_s", "grace_s", "store_ttl_s"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name}: must be > 0 seconds, not {getattr(self, name)}")
        for name in ("store_entries", "store_bytes"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}: must be >= 0, not {getattr(self, name)}")
        for origin in self.cors_origin:
            if not (origin == "*" or _ORIGIN.fullmatch(origin)):
                raise ConfigError(f"cors_origin: must be `*` or like https://example.com:8443, not {origin!r}")
        if not self.insecure and not is_loopback(self.host) and not self.api_keys():
            raise ConfigError(
                f"host: {self.host} serves other machines, which needs a key (set {KEY_VARIABLE} or --api-key-file) "
                "or --insecure"
            )

    def api_keys(self) -> tuple[str, ...]:
        """Read the accepted keys; empty where no key is needed.

        Raises:
            ConfigError: The key file cannot be read or holds nothing.
        """
        keys = [os.environ.get(KEY_VARIABLE, "").strip()]
        if self.api_key_file is not None:
            try:
                listed = self.api_key_file.read_text(encoding="utf-8").split()
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(f"api_key_file: {self.api_key_file} cannot be read ({error})") from error
            if not listed:
                raise ConfigError(f"api_key_file: {self.api_key_file} holds no key")
            keys += listed
        return tuple(dict.fromkeys(key for key in keys if key))


def is_loopback(host: str) -> bool:
    """Say whether a name or an address is this machine's own.

    Example:
        >>> is_loopback("127.0.0.1"), is_loopback("[::1]"), is_loopback("0.0.0.0")
        (True, True, False)
    """
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"
