"""Tools that answer, fail, or never answer."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from icrl.errors import ToolError
from icrl.runtime.tools.tool import ToolPolicy, ToolSpec

__all__ = ["EchoTool", "FailingTool", "HangingTool"]


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
