"""An asyncio agent runtime with token-exact trajectories, and reinforcement learning of tool use on top of it.

    import icrl

    result = await icrl.Agent().run("What is the code of Rikor?")
    result.answer, result.trajectory

Public names are loaded when they are first used, so `import icrl` costs neither torch nor transformers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from icrl.errors import ConfigError, DataError, EngineError, IcrlError, ToolError
    from icrl.events import Event, fold
    from icrl.runtime.agent import Agent, Result
    from icrl.runtime.tools.tool import Tool, tool
    from icrl.trajectory import Group, Row, Segment, StopReason, Trajectory
    from icrl.types import Demonstration, Limits, Message, SamplingParams, Step, Task, ToolCall, ToolResult

__version__ = "0.1.0"

__all__ = [
    "Agent",
    "ConfigError",
    "DataError",
    "Demonstration",
    "EngineError",
    "Event",
    "Group",
    "IcrlError",
    "Limits",
    "Message",
    "Result",
    "Row",
    "SamplingParams",
    "Segment",
    "Step",
    "StopReason",
    "Task",
    "Tool",
    "ToolCall",
    "ToolError",
    "ToolResult",
    "Trajectory",
    "fold",
    "tool",
]

_HOMES = {
    "icrl.errors": ("ConfigError", "DataError", "EngineError", "IcrlError", "ToolError"),
    "icrl.events": ("Event", "fold"),
    "icrl.runtime.agent": ("Agent", "Result"),
    "icrl.runtime.tools.tool": ("Tool", "tool"),
    "icrl.trajectory": ("Group", "Row", "Segment", "StopReason", "Trajectory"),
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        from icrl.errors import nearest

        raise AttributeError(f"module 'icrl' has no attribute {name!r}.{nearest(name, __all__)}")
    home = next((module for module, names in _HOMES.items() if name in names), "icrl.types")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
