"""What a server said about itself at connect."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["OLDEST", "ServerFacts"]

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
