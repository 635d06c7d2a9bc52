"""What a running tool call may know about its surroundings."""

from __future__ import annotations

import time
from contextvars import ContextVar
from dataclasses import dataclass

__all__ = ["CALL", "CallContext", "current"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CallContext:
    """Where a tool call comes from and until when its answer is wanted.

    Example:
        >>> CallContext(session="t-1", deadline=time.monotonic() + 10.0).remaining_s > 9.0
        True
    """

    session: str = ""
    """Id of the trajectory that calls; empty outside of one. Tools that keep state keep it per session."""
    deadline: float = float("inf")
    """Monotonic time at which the toolbox gives the call up."""

    @property
    def remaining_s(self) -> float:
        """Seconds left, not below 0."""
        return max(0.0, self.deadline - time.monotonic())


CALL: ContextVar[CallContext] = ContextVar("icrl_tool_call", default=CallContext())  # noqa: B039 - immutable
"""Set by the toolbox around every call."""


def current() -> CallContext:
    """Return the context of the tool call that runs now.

    Example:
        >>> current().session
        ''
    """
    return CALL.get()
