"""What running a program gives, and what anything that runs programs looks like."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Literal, Protocol

__all__ = ["Executor", "SandboxResult", "Status"]

Status = Literal["ok", "error", "timeout", "memory", "output_limit", "denied", "crashed"]
"""How a program ended: by itself, by an exception, by its deadline, by a bound on memory or output, refused by the
language policy, or by a signal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxResult:
    r"""How a program ended and what it left. All text in it was written by the program: treat it as hostile.

    Example:
        >>> SandboxResult(status="ok", stdout="3\n").value is None
        True
    """

    status: Status
    """How the program ended."""
    stdout: str = ""
    """What it printed, standard error included; whatever was printed before a failure is kept."""
    value: str | None = None
    """`repr` of a last bare expression, unless that is `None`."""
    error: str | None = None
    """Why it failed, for the model to read: a traceback of the snippet's own lines, or the reason of a refusal."""
    wall_s: float = 0.0
    """Seconds from start to end."""
    cpu_s: float = 0.0
    """Processor seconds that it used, user and system."""
    max_rss_mb: float = 0.0
    """Largest resident memory in MiB."""
    truncated: bool = False
    """Whether output was cut at the cap."""


class Executor(Protocol):
    """Runs programs: the sandbox, a REPL session of it, or another service behind the same interface."""

    async def run(self, code: str, *, timeout_s: float = 5.0, memory_mb: int = 1024, stdin: str = "") -> SandboxResult:
        """Run a program to its end.

        Args:
            code: Python source.
            timeout_s: Wall-clock seconds until it is killed.
            memory_mb: MiB of address space.
            stdin: What it reads from standard input.

        Raises:
            SandboxError: The isolation itself failed; the program's own failures are results.
        """
        ...

    def session(self) -> AbstractAsyncContextManager[Executor]:
        """Open a REPL: programs run in it one after another share their variables."""
        ...

    async def aclose(self) -> None:
        """Kill what runs and free what is held; a later call opens again."""
        ...
