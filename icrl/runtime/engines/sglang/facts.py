"""What a server said about itself at connect."""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["OLDEST", "ServerFacts", "parse_version"]

OLDEST = (0, 5, 19)
"""The oldest version that reports weight versions per token; older ones are refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerFacts:
    """What a server said about itself at connect."""

    address: str
    """`http://host:port`, without a slash at the end."""
    version: tuple[int, int, int]
    """Version of SGLang."""
    model_path: str
    """The model's directory or name, as the server was started with it."""
    tokenizer_path: str
    """The same for its tokenizer."""
    vocab_size: int
    """One id beyond this kills the server, so requests are checked here."""
    context_limit: int
    """Tokens of prompt plus generation."""
    weight_version: str
    """Name of the weights at connect: `default`, or what the last update called them."""
    deterministic: bool = False
    """Whether it samples by the request's seed (`--enable-deterministic-inference`)."""

    @property
    def brackets_updates(self) -> bool:
        """Whether weights are sent between `/begin_weight_update` and `/end_weight_update` (from 0.5.21)."""
        return self.version >= (0, 5, 21)


def parse_version(text: str) -> tuple[int, int, int]:
    """Read the numbers of a version; what follows them (`.post1`, `.dev3+g…`) does not matter here.

    Example:
        >>> parse_version("0.5.23.post1"), parse_version("main")
        ((0, 5, 23), (0, 0, 0))
    """
    found = re.match(r"v?(\d+)\.(\d+)(?:\.(\d+))?", text)
    if found is None:
        return (0, 0, 0)
    major, minor, patch = found.groups(default="0")
    return (int(major), int(minor), int(patch))
