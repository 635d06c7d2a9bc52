"""REPL sessions of an executor, one for each trajectory that uses it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field

from icrl.errors import ToolBusy, ToolError
from icrl.runtime.sandbox.result import Executor, SandboxResult

__all__ = ["SURVIVED", "Sessions"]

SURVIVED = ("ok", "error", "denied")
"""Endings after which a session's variables are still there."""

_Program = Callable[[Executor], Awaitable[SandboxResult]]


@dataclass(slots=True, eq=False)
class _Session:
    """A trajectory's place; its REPL opens at the first program, and again after one that was killed."""

    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Programs of one trajectory run one after another."""
    context: AbstractAsyncContextManager[Executor] | None = None
    """What closes the REPL."""
    repl: Executor | None = None
    """The REPL, once it is open."""
    over: bool = False
    """Whether the trajectory has ended; a program that still waits must leave nothing open."""

    async def run(self, executor: Executor, program: _Program) -> SandboxResult:
        """Run a program; whatever kills it costs the REPL."""
        kept = False
        try:
            if self.repl is None:
                context = executor.session()
                self.repl = await context.__aenter__()
                self.context = context
            result = await program(self.repl)
            kept = result.status in SURVIVED and not self.over
        except ToolError:  # the program was not even begun
            kept = not self.over
            raise
        finally:
            if not kept:
                await self.close()
        return result

    async def close(self) -> None:
        """Close the REPL, if one is open."""
        context, self.context, self.repl = self.context, None, None
        if context is not None:
            await context.__aexit__(None, None, None)


class Sessions:
    """Keeps a REPL for each trajectory until it ends.

    Args:
        executor: Opens the REPLs.
        limit: How many there may be at once.
    """

    def __init__(self, executor: Executor, *, limit: int) -> None:
        self._executor = executor
        self._limit = limit
        self._sessions: dict[str, _Session] = {}

    async def run(self, name: str, program: _Program) -> SandboxResult:
        """Run a program in a trajectory's REPL, after those that wait for it already.

        Args:
            name: The trajectory.
            program: Is given the REPL when it is free.

        Raises:
            ToolBusy: The trajectory has none yet, and there may be no more.
            SandboxError: Isolation broke.
        """
        session = self._sessions.get(name)
        if session is None:
            if len(self._sessions) >= self._limit:
                raise ToolBusy(f"all {self._limit} sessions are taken; try again later")
            session = self._sessions[name] = _Session()
        async with session.turn:
            return await session.run(self._executor, program)

    async def end(self, name: str) -> None:
        """Close a trajectory's REPL, after the program that runs in it."""
        session = self._sessions.pop(name, None)
        if session is not None:
            session.over = True
            async with session.turn:
                await session.close()

    async def aclose(self) -> None:
        """Close all REPLs, those too whose neighbours cannot be closed."""
        endings = await asyncio.gather(*map(self.end, tuple(self._sessions)), return_exceptions=True)
        for ending in endings:
            if ending is not None:
                raise ending
