"""Tools that answer, fail, or never answer."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from icrl.errors import ToolError
from icrl.runtime.tools.tool import ToolPolicy, ToolSpec
from icrl.seeds import seed_for

__all__ = ["EchoTool", "FailingTool", "FaultyTool", "HangingTool", "HeavyTailedTool"]


@dataclass(slots=True, kw_only=True)
class _FakeTool:
    name: str
    """What the model calls it."""
    policy: ToolPolicy = field(default_factory=ToolPolicy)
    """How a toolbox treats it."""
    calls: list[Mapping[str, Any]] = field(default_factory=list)
    """Arguments of every call, in order."""
    closed: int = 0
    """How often it was closed."""
    fingerprint: str = ""
    """What decides its answers besides the arguments."""

    @property
    def spec(self) -> ToolSpec:
        """What the model is told."""
        text = {"type": "string", "description": "Any text."}
        schema = {"type": "object", "properties": {"text": text}, "required": ["text"]}
        return ToolSpec(name=self.name, description=f"Stand-in tool {self.name}.", parameters=schema)

    async def aclose(self) -> None:
        """Count the closing."""
        self.closed += 1


@dataclass(slots=True, kw_only=True)
class EchoTool(_FakeTool):
    """Answers with its `text` argument.

    Example:
        >>> asyncio.run(EchoTool()({"text": "hi"}))
        'hi'
    """

    name: str = "echo"
    """What the model calls it."""
    latency_s: float = 0.0
    """Seconds before it answers."""

    async def __call__(self, arguments: Mapping[str, Any]) -> str:
        """Answer with the text."""
        self.calls.append(arguments)
        if self.latency_s:
            await asyncio.sleep(self.latency_s)
        return str(arguments["text"])


@dataclass(slots=True, kw_only=True)
class FailingTool(_FakeTool):
    """Raises.

    Example:
        >>> asyncio.run(FailingTool(error=ToolError("no network"))({}))
        Traceback (most recent call last):
        icrl.errors.ToolError: no network
    """

    name: str = "fail"
    """What the model calls it."""
    error: Exception = field(default_factory=lambda: ToolError("it failed"))
    """What it raises."""

    async def __call__(self, arguments: Mapping[str, Any]) -> str:
        """Raise."""
        self.calls.append(arguments)
        raise self.error


@dataclass(slots=True, kw_only=True)
class HangingTool(_FakeTool):
    """Never answers.

    Example:
        >>> asyncio.run(asyncio.wait_for(HangingTool()({}), 0.01))
        Traceback (most recent call last):
        TimeoutError
    """

    name: str = "hang"
    """What the model calls it."""
    cancellations: int = 0
    """How often a call was cancelled."""
    swallows: int = 0
    """How many cancellations a call ignores, as badly written tools do."""

    async def __call__(self, arguments: Mapping[str, Any]) -> str:
        """Wait for ever, or until cancelled more often than it ignores."""
        self.calls.append(arguments)
        ignored = 0
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.cancellations += 1
                if ignored == self.swallows:
                    raise
                ignored += 1


@dataclass(slots=True, kw_only=True)
class FaultyTool(_FakeTool):
    """Answers most calls; of the others some hang, some raise, and some are answered with a flood.

    What becomes of a call depends on its number and the seed only.

    Example:
        >>> tool = FaultyTool(raises=1.0)
        >>> asyncio.run(tool({"text": "hi"}))
        Traceback (most recent call last):
        RuntimeError: call 0 was to fail
        >>> tool.faults
        ['raises']
    """

    name: str = "faulty"
    """What the model calls it."""
    hangs: float = 0.0
    """Share of calls that are never answered."""
    raises: float = 0.0
    """Share of calls that raise."""
    floods: float = 0.0
    """Share of calls that are answered with `flood_chars` characters."""
    flood_chars: int = 10_000_000
    """Length of a flood."""
    seed: int = 0
    """Chooses which calls."""
    faults: list[str] = field(default_factory=list)
    """What became of every call, in order: `""` where it was answered."""
    running: int = 0
    """Calls that have not ended."""

    async def __call__(self, arguments: Mapping[str, Any]) -> str:
        """Answer with the text, or fail in one of three ways."""
        number = len(self.calls)
        self.calls.append(arguments)
        fault = self._fault(number)
        self.faults.append(fault)
        self.running += 1
        try:
            if fault == "hangs":
                await asyncio.Event().wait()
            if fault == "raises":
                raise RuntimeError(f"call {number} was to fail")
            return "x" * self.flood_chars if fault == "floods" else str(next(iter(arguments.values()), ""))
        finally:
            self.running -= 1

    def _fault(self, number: int) -> str:
        drawn = seed_for(self.seed, "fault", number) % 10_000 / 10_000
        for fault, share in (("hangs", self.hangs), ("raises", self.raises), ("floods", self.floods)):
            if drawn < share:
                return fault
            drawn -= share
        return ""


@dataclass(slots=True, kw_only=True)
class HeavyTailedTool(_FakeTool):
    """Answers with its `text` after a time that is mostly short and now and then very long.

    Times are log-normal: `median_s * exp(sigma * z)`, some of them `tail_factor` times that. How long a call takes
    depends on its number and the seed only.

    Example:
        >>> tool = HeavyTailedTool.tail(seed=1)
        >>> times = sorted(map(tool.latency_s, range(10_000)))
        >>> round(times[5000], 2), times[-1] > 8
        (0.3, True)
    """

    name: str = "slow"
    """What the model calls it."""
    median_s: float = 0.3
    """Seconds that half of the calls need at most."""
    sigma: float = 0.5
    """Standard deviation of the logarithm of the time."""
    tail_share: float = 0.0
    """Share of calls that take `tail_factor` times as long."""
    tail_factor: float = 30.0
    """How much longer these take."""
    cap_s: float = math.inf
    """Seconds of a call at most."""
    scale: float = 1.0
    """Every time is multiplied by this; for tests that have none."""
    seed: int = 0
    """Chooses the times."""
    spent_s: list[float] = field(default_factory=list)
    """Seconds of every call, in order."""

    @classmethod
    def tail(cls, *, scale: float = 1.0, seed: int = 0) -> HeavyTailedTool:
        """Log-normal around 0.3 s with sigma 0.5; one call in a hundred takes 30 times as long."""
        return cls(median_s=0.3, sigma=0.5, tail_share=0.01, scale=scale, seed=seed)

    @classmethod
    def lognorm(cls, *, scale: float = 1.0, seed: int = 0) -> HeavyTailedTool:
        """Log-normal around 0.5 s with sigma 1, at most 60 s."""
        return cls(median_s=0.5, sigma=1.0, cap_s=60.0, scale=scale, seed=seed)

    def latency_s(self, number: int) -> float:
        """Return the seconds that a call takes, by its number."""
        stream = random.Random(seed_for(self.seed, "latency", number))  # the name alone decides: no global state
        seconds = self.median_s * math.exp(self.sigma * stream.gauss())
        if stream.random() < self.tail_share:
            seconds *= self.tail_factor
        return min(seconds, self.cap_s) * self.scale

    async def __call__(self, arguments: Mapping[str, Any]) -> str:
        """Wait, and answer with the text."""
        seconds = self.latency_s(len(self.calls))
        self.calls.append(arguments)
        self.spent_s.append(seconds)
        await asyncio.sleep(seconds)
        return str(next(iter(arguments.values()), ""))
