"""Monty, an interpreter of a part of Python, behind the interface of the sandbox."""

from __future__ import annotations

import asyncio
import os
from contextlib import AsyncExitStack
from dataclasses import replace
from types import TracebackType
from typing import Any, Final, Self

from icrl.errors import ConfigError, ToolBusy
from icrl.imports import require
from icrl.runtime.sandbox.monty_workers import MontyWorkers, run_in
from icrl.runtime.sandbox.program import Program
from icrl.runtime.sandbox.result import SandboxResult

__all__ = ["MontyExecutor", "MontySession"]

_PROGRAMS_PER_CORE: Final = 4
_SURVIVED: Final = ("ok", "error", "denied")
_GONE: Final = "The variables of this session are gone."
_LOST: Final = f"not run: the session's interpreter has ended. {_GONE} Start over."


class MontyExecutor:
    """Runs programs in Monty, an interpreter written in Rust that has no way to a file, the network or a process.

    It knows a part of the language and of the standard library, and no other package: no numpy, no sympy. Programs run
    in worker processes of the library `pydantic-monty`; one that is not done in time is killed with its worker.
    `cpu_s` and `max_rss_mb` are not measured and 0.

    Args:
        max_memory_mb: MiB of heap that a program gets at most, whatever it may have: the message of what it raises
            passes through this process.
        max_concurrency: Programs that run at once; 4 for each core if not given. Others wait, before their deadline
            begins.
        max_sessions: Sessions that may hold a process at once.

    Raises:
        ConfigError: A bound is not positive.
        MissingExtraError: The extra `monty` is not installed.

    Example:
        >>> MontyExecutor(max_memory_mb=0)
        Traceback (most recent call last):
        icrl.errors.ConfigError: max_memory_mb: must be >= 1, not 0
    """

    def __init__(
        self, *, max_memory_mb: int = 256, max_concurrency: int | None = None, max_sessions: int = 256
    ) -> None:
        concurrency = _PROGRAMS_PER_CORE * len(os.sched_getaffinity(0)) if max_concurrency is None else max_concurrency
        bounds = {"max_memory_mb": max_memory_mb, "max_concurrency": concurrency, "max_sessions": max_sessions}
        for name, bound in bounds.items():
            if bound < 1:
                raise ConfigError(f"{name}: must be >= 1, not {bound!r}")
        require("pydantic_monty", extra="monty")
        import pydantic_monty

        self.fingerprint = f"Monty {pydantic_monty.__version__} {max_memory_mb} MiB"
        """Names what besides a program decides its output."""
        self._max_memory_mb = max_memory_mb
        self._concurrency = concurrency
        self._max_sessions = max_sessions
        self._sessions: set[MontySession] = set()
        self._workers: MontyWorkers | None = None

    async def __aenter__(self) -> Self:
        await self._ready().open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def run(self, code: str, *, timeout_s: float = 5.0, memory_mb: int = 1024, stdin: str = "") -> SandboxResult:
        """Run a program to its end.

        Args:
            code: Python source, up to 64 KiB.
            timeout_s: Wall-clock seconds until it is killed.
            memory_mb: MiB of heap, up to `max_memory_mb`.
            stdin: Must be empty: Monty has no standard input.

        Raises:
            ConfigError: A bound is out of range, or there is input.
            SandboxError: The library failed; the program's own failures are results.
        """
        program = _program(code, timeout_s, memory_mb, stdin)
        refusal = program.refusal()
        if refusal is not None:
            return refusal
        workers = self._ready()

        async def once() -> SandboxResult:
            async with workers.checkout(self._heap_mb(program)) as interpreter:
                return await run_in(interpreter, program)

        async with workers.turns:
            return await workers.guard(once)

    def session(self) -> MontySession:
        """Open a REPL: programs run in it one after another share their variables, and nothing with others."""
        return MontySession(self)

    async def aclose(self) -> None:
        """Kill every program and session; a later program starts anew."""
        workers, self._workers = self._workers, None
        if workers is not None and workers.loop is asyncio.get_running_loop():
            await workers.aclose()
            await asyncio.gather(*(session.lose() for session in tuple(self._sessions)))

    def _ready(self) -> MontyWorkers:
        if self._workers is None or self._workers.loop is not asyncio.get_running_loop():
            # The library kills the workers of a pool that nobody holds any more.
            processes = self._concurrency + self._max_sessions
            self._workers = MontyWorkers(processes=processes, concurrency=self._concurrency)
        return self._workers

    def _heap_mb(self, program: Program) -> int:
        return min(program.memory_mb, self._max_memory_mb)

    def _enter(self, session: MontySession) -> MontyWorkers:
        if len(self._sessions) >= self._max_sessions:
            raise ToolBusy(f"Monty holds {len(self._sessions)} sessions, as many as it may; try again later")
        self._sessions.add(session)
        return self._ready()


class MontySession:
    """Programs that share their variables; made by `MontyExecutor.session`.

    It holds a worker from its first program on, with that program's bound on memory. The worker ends with the session,
    and when a program is stopped or its call cancelled; what comes next then starts from nothing, and a result says so.

    Args:
        executor: Lends workers.
    """

    def __init__(self, executor: MontyExecutor) -> None:
        self._executor = executor
        self._busy = asyncio.Lock()
        self._stack: AsyncExitStack | None = None
        self._workers: MontyWorkers | None = None
        self._interpreter: Any = None
        self._is_lost = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def session(self) -> MontySession:
        """Open another session, which shares nothing with this one."""
        return self._executor.session()

    async def run(self, code: str, *, timeout_s: float = 5.0, memory_mb: int = 1024, stdin: str = "") -> SandboxResult:
        """Run a program after those before it; see `MontyExecutor.run`.

        Raises:
            ToolBusy: It would need a worker, and all are taken.
        """
        program = _program(code, timeout_s, memory_mb, stdin)
        refusal = program.refusal()
        if refusal is not None:
            return refusal
        async with self._busy:
            if self._is_lost:
                self._is_lost = False
                return SandboxResult(status="error", error=_LOST)
            return await self._next(program)

    async def aclose(self) -> None:
        """Kill what runs in it and free its worker; a later program starts from nothing."""
        await self._close()
        self._is_lost = False

    async def lose(self) -> None:
        """Free the worker of a session that may go on; its next program is told so."""
        self._is_lost = self._interpreter is not None
        await self._close()

    async def _next(self, program: Program) -> SandboxResult:
        kept = False
        try:
            workers, interpreter = await self._lent(program)
            result = await workers.guard(lambda: run_in(interpreter, program))
            kept = result.status in _SURVIVED
        except BaseException:
            self._is_lost = self._interpreter is not None
            raise
        finally:
            if not kept:
                await self._close()
        return result if kept else replace(result, error=f"{result.error}\n{_GONE}")

    async def _lent(self, program: Program) -> tuple[MontyWorkers, Any]:
        if self._workers is None or self._stack is None:
            self._workers = self._executor._enter(self)
            self._stack = AsyncExitStack()
            lending = self._workers.checkout(self._executor._heap_mb(program))
            self._interpreter = await self._stack.enter_async_context(lending)
        return self._workers, self._interpreter

    async def _close(self) -> None:
        stack, self._stack, self._workers, self._interpreter = self._stack, None, None, None
        self._executor._sessions.discard(self)
        if stack is not None:
            await stack.aclose()


def _program(code: str, timeout_s: float, memory_mb: int, stdin: str) -> Program:
    if stdin:
        raise ConfigError("stdin: Monty has no standard input; put the input into the program, or use Sandbox")
    return Program(code=code, timeout_s=timeout_s, memory_mb=memory_mb)
