"""Tools that a training run imports by name."""

from __future__ import annotations

from icrl.runtime.tools.tool import ToolPolicy
from icrl.testing import FaultyTool

__all__ = ["search"]

search = FaultyTool(
    name="search", hangs=0.05, raises=0.05, floods=0.05, seed=2, policy=ToolPolicy(timeout_s=0.5, max_concurrency=64)
)
