"""Python as a tool: a program in, what it printed out, in whatever sandbox it is given."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Any

from icrl.errors import ConfigError, ToolArgumentError, ToolError, ToolTimeout
from icrl.runtime.sandbox.result import Executor, SandboxResult, Status
from icrl.runtime.tools.context import current
from icrl.runtime.tools.sessions import SURVIVED, Sessions
from icrl.runtime.tools.signature import Signature
from icrl.runtime.tools.snippet import shortened, transcript, unfenced
from icrl.runtime.tools.tool import ToolPolicy, ToolSpec, close

__all__ = ["PythonTool"]

MARGIN_S = 0.25
"""What is kept of a call's time for killing the program and handing over what it printed."""

_TOLD = "Run a Python program and return what it prints."
_TOLD_STATEFUL = f"{_TOLD} Variables stay for your next programs."
_REASONS: Mapping[Status, str] = {
    "timeout": "the program was stopped because it was not done in time",
    "memory": "the program was stopped because it needed too much memory",
    "crashed": "the program crashed its interpreter",
    "output_limit": "the program was stopped because it printed too much",
}
_GONE = "The variables of this session are gone."
_SILENT = "The program ran and printed nothing. Use print() on what you want to see."


def _form(code: str) -> None:
    """Describe what the model sends.

    Args:
        code: The program. Print what you want to see.
    """


_SIGNATURE = Signature.of(_form)


def _policy() -> ToolPolicy:
    """Let few programs run at once: each may keep a processor busy."""
    return ToolPolicy(max_concurrency=max(4, 2 * len(os.sched_getaffinity(0))))


@dataclass(frozen=True, slots=True, eq=False)
class PythonTool:
    r"""Runs a program and shows what it printed, the value of a last bare expression, and its error.

    What a program does by itself is an answer: a traceback, a refusal by the language policy and too much output too.
    What depends on the machine is a `ToolError`, with what was printed until then: `ToolTimeout` where time ran out, a
    plain one where memory did, or where the interpreter died. So errors are never cached, and count as failed calls.
    `endings` counts every kind.

    A stateful tool keeps one session for each trajectory, in which variables live from call to call. Calls outside of
    a trajectory run by themselves.

    Raises:
        ConfigError: A bound is not positive, or a stateful tool is said to be repeatable.

    Example:
        >>> import asyncio
        >>> class Calm:
        ...     async def run(self, code, *, timeout_s=5.0, memory_mb=1024, stdin=""):
        ...         return SandboxResult(status="ok", stdout="2\n", value="3")
        >>> asyncio.run(PythonTool(Calm())({"code": "```python\nprint(2)\n3\n```"}))
        '2\n3'
    """

    executor: Executor
    """What runs programs."""
    _: KW_ONLY
    name: str = "python"
    """What the model calls it."""
    description: str = ""
    """What the model is told; by default what the tool does, and whether variables stay."""
    timeout_s: float = 5.0
    """Seconds that a program may run; fewer where less of the call's time is left."""
    memory_mb: int = 1024
    """MiB of address space that a program may use."""
    stateful: bool = False
    """Whether variables live until the end of the trajectory."""
    max_chars: int = 8_000
    """Characters of output to show; more are cut in the middle."""
    max_sessions: int = 256
    """Sessions at once of a stateful tool; a call that would need one more is refused with `ToolBusy`."""
    policy: ToolPolicy = field(default_factory=_policy)
    """How a toolbox treats it; by default, twice as many programs run at once as there are processors."""
    endings: Counter[Status] = field(default_factory=Counter, init=False)
    """How programs ended so far."""
    _sessions: Sessions = field(init=False, repr=False)
    """The REPLs of a stateful tool."""

    def __post_init__(self) -> None:
        for name in ("timeout_s", "memory_mb", "max_chars", "max_sessions"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name}: must be > 0, not {getattr(self, name)!r}")
        if self.stateful and self.policy.repeatable:
            raise ConfigError("policy: a stateful tool is not repeatable; drop stateful=True or repeatable=True")
        object.__setattr__(self, "_sessions", Sessions(self.executor, limit=self.max_sessions))

    @property
    def spec(self) -> ToolSpec:
        """What the model is told."""
        told = self.description or (_TOLD_STATEFUL if self.stateful else _TOLD)
        return ToolSpec(name=self.name, description=told, parameters=_SIGNATURE.schema)

    @property
    def fingerprint(self) -> str:
        """What besides the program decides its output: the executor and the bounds."""
        executor = getattr(self.executor, "fingerprint", type(self.executor).__name__)
        return f"{executor} {self.timeout_s} s {self.memory_mb} MiB {self.max_chars} characters"

    async def __call__(self, arguments: Mapping[str, Any]) -> str:
        """Run a program.

        Raises:
            ToolArgumentError: There is no program.
            ToolTimeout: It ran too long.
            ToolBusy: It would need a session, and all are taken.
            ToolError: It needed too much memory, or its interpreter died.
            SandboxError: Isolation broke.
        """
        code = unfenced(_SIGNATURE.bind(arguments)["code"])
        if not code.strip():
            raise ToolArgumentError("argument 'code' is empty; write the program")
        session = current().session
        if self.stateful and session:
            return self._answer(await self._sessions.run(session, lambda repl: self._run(repl, code)), lasting=True)
        return self._answer(await self._run(self.executor, code), lasting=False)

    async def end(self, session: str) -> None:
        """Close a trajectory's session, if it has one."""
        await self._sessions.end(session)

    async def aclose(self) -> None:
        """Close all sessions and the executor; a later call opens them again."""
        try:
            await self._sessions.aclose()
        finally:
            await close(self.executor)

    async def _run(self, executor: Executor, code: str) -> SandboxResult:
        """Run a program for as long as its call has time; the model is to see what a slow one printed."""
        remaining_s = current().remaining_s
        timeout_s = min(self.timeout_s, max(remaining_s - MARGIN_S, remaining_s / 2))
        if timeout_s <= 0:
            raise ToolTimeout("no time was left to run the program")
        result = await executor.run(code, timeout_s=timeout_s, memory_mb=self.memory_mb)
        self.endings[result.status] += 1
        return result

    def _answer(self, result: SandboxResult, *, lasting: bool) -> str:
        """Return what the model is shown, or raise it.

        Args:
            result: How the program ended.
            lasting: Whether it ran in a session, whose variables a killed program takes with it.
        """
        if result.status in SURVIVED:
            return shortened(transcript(result), self.max_chars) or _SILENT
        printed = shortened(transcript(replace(result, error=None)), self.max_chars)
        reason = shortened(result.error or _REASONS[result.status], self.max_chars)
        if lasting and _GONE not in reason:  # an executor may say so itself
            reason = f"{reason}\n{_GONE}"
        if result.status == "output_limit":
            return f"{printed}\n[{reason}]"
        kind = ToolTimeout if result.status == "timeout" else ToolError
        raise kind(f"{reason}\nIt had printed:\n{printed}" if printed else reason)
