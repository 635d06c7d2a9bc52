"""What one run may call: tools that the runtime runs, and tools that whoever asked runs himself."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from icrl.errors import ConfigError
from icrl.runtime.tools.tool import ToolSpec
from icrl.types import ToolCall

__all__ = ["Offer"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """The tools that the model of one run is told about.

    Raises:
        ConfigError: Two of them share a name.

    Example:
        >>> weather = ToolSpec(name="weather", description="Tell the weather.", parameters={"type": "object"})
        >>> offer = Offer(client=(weather,))
        >>> offer.hands_over(ToolCall(name="weather")), offer.hands_over(ToolCall(name="search"))
        (True, False)
    """

    own: tuple[ToolSpec, ...] = ()
    """Those of the agent's toolbox, which the runtime runs."""
    client: tuple[ToolSpec, ...] = ()
    """Those of whoever asked: a turn that calls one ends the run, and the calls are his to answer."""

    def __post_init__(self) -> None:
        for name, count in Counter(spec.name for spec in self.specs).items():
            if count > 1:
                raise ConfigError(f"tools: {name!r} is taken, as another tool has that name; rename yours")

    @property
    def specs(self) -> tuple[ToolSpec, ...]:
        """All of them."""
        return self.own + self.client

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all."""
        return tuple(spec.name for spec in self.specs)

    def hands_over(self, call: ToolCall) -> bool:
        """Say whether a call is for whoever asked; one that could not be read is answered by the runtime."""
        return call.error is None and any(call.name == spec.name for spec in self.client)
