"""Running programs that a model wrote, without giving them anything.

    async with Sandbox() as box:
        result = await box.run("print(6 * 7)", timeout_s=5.0, memory_mb=512)

The zygotes import from here too, so that names are loaded when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from icrl.runtime.sandbox.result import Executor, SandboxResult, Status
    from icrl.runtime.sandbox.sandbox import Sandbox

__all__ = ["Executor", "Sandbox", "SandboxResult", "Status"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'icrl.runtime.sandbox' has no attribute {name!r}")
    from icrl.runtime.sandbox import result, sandbox

    return getattr(sandbox if name == "Sandbox" else result, name)
