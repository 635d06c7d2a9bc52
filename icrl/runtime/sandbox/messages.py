"""What zygotes and children say to the process that serves. A child's words are data from a hostile program."""

from __future__ import annotations

from typing import Literal

import msgspec

__all__ = [
    "Ended",
    "Failed",
    "Forked",
    "Notice",
    "Probed",
    "Ready",
    "Reply",
    "Request",
    "Unforked",
    "Unlocked",
    "decode_notice",
    "encode",
]


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """Asks a child to run a program."""

    run: int
    """Counts the programs of this child, from 1."""
    code: str
    """Python source."""
    stdin: str
    """What the program reads from standard input."""
    last: bool
    """Whether the child ends after it."""


class Reply(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a child says of a program that came to its end; all of it may be forged by the program."""

    run: int
    """Of the request."""
    status: Literal["ok", "error", "memory", "denied"]
    """As in a result."""
    value: str | None
    """As in a result."""
    error: str | None
    """As in a result."""
    truncated: bool
    """Whether the value was cut."""
    cpu_s: float
    """Processor seconds of this program; the kernel's figure replaces it where the child has ended."""
    max_rss_mb: float
    """Largest resident memory in MiB so far; likewise."""


class Probed(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What came of the probes: those that a layer should have stopped, and what they achieved."""

    found: dict[str, str]
    """What each achieved, by name."""


class Unlocked(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Why a child could not lock itself."""

    reason: str
    """For a person."""


class Ready(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="ready"):
    """A zygote is warm."""

    address_space_mb: float
    """MiB of address space that every child begins with."""
    layers: list[str]
    """What its children lock."""


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="failed"):
    """A zygote could not start."""

    reason: str
    """For a person."""
    is_layer: bool = False
    """Whether the kernel lacks a layer."""
    missing: str | None = None
    """The package that is not installed, if that is why."""


class Forked(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="forked"):
    """A child exists; its process descriptor comes with this."""

    child: int
    """Its name, given in the request."""


class Unforked(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="unforked"):
    """A child could not be made."""

    child: int
    """Its name, given in the request."""
    reason: str
    """For a person."""


class Ended(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="ended"):
    """A child has ended and is reaped."""

    child: int
    """Its name, given in the request."""
    status: int
    """As `wait` gives it."""
    cpu_s: float
    """Processor seconds that it used, user and system."""
    max_rss_mb: float
    """Largest resident memory in MiB."""


Notice = Ready | Failed | Forked | Unforked | Ended
"""What a zygote says."""

encode = msgspec.json.Encoder().encode
"""Encode a message as one line of JSON."""
decode_notice = msgspec.json.Decoder(Notice).decode
"""Decode what a zygote says."""
