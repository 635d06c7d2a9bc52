"""A REPL: one locked child that runs one program after another for one owner."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from types import TracebackType
from typing import Final, Self

from icrl.runtime.sandbox.child import Child, Stuck
from icrl.runtime.sandbox.pool import Pool
from icrl.runtime.sandbox.process import ZygoteProcess
from icrl.runtime.sandbox.profiles import ProfileName
from icrl.runtime.sandbox.program import Program, fork
from icrl.runtime.sandbox.result import SandboxResult
from icrl.runtime.sandbox.verdict import judge

__all__ = ["Session"]

_CPU_S: Final = 3600.0
_GONE: Final = "The variables of this session are gone."
_RESTARTED: Final = f"not run: the session's interpreter has ended. {_GONE} Start over."


class Session:
    """Programs that share their variables; made by `Sandbox.session`.

    The child is forked for the first program, with that program's bound on memory. It ends with the session, after a
    time without use, and when a program is killed. What comes next then starts from nothing: the result of the
    program that ended it says so, or, if it ended between two programs, the next one is not run and its result says
    so.

    Args:
        pool: Returns the zygotes of the running event loop.
        profile: Which zygote to fork.
        idle_s: Seconds without use after which the child is killed.
        enter: Called when a child is to be forked; raises if there are too many.
        leave: Called when it has ended.
        sibling: Opens another session.
    """

    def __init__(
        self,
        pool: Callable[[], Pool],
        *,
        profile: Callable[[Pool], ProfileName],
        idle_s: float,
        enter: Callable[[Session], None],
        leave: Callable[[Session], None],
        sibling: Callable[[], Session],
    ) -> None:
        self._find_pool = pool
        self._profile = profile
        self._idle_s = idle_s
        self._enter = enter
        self._leave = leave
        self._sibling = sibling
        self._busy = asyncio.Lock()
        self._child: Child | None = None
        self._pool: Pool | None = None
        self._zygote: ZygoteProcess | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_lost = False
        self._runs = 0
        self._idle: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def session(self) -> Session:
        """Open another session, which shares nothing with this one."""
        return self._sibling()

    async def run(self, code: str, *, timeout_s: float = 5.0, memory_mb: int = 1024, stdin: str = "") -> SandboxResult:
        """Run a program after those before it.

        Args:
            code: Python source.
            timeout_s: Wall-clock seconds until it is killed, and the session's variables with it.
            memory_mb: MiB of address space; that of the first program counts.
            stdin: What it reads from standard input.

        Raises:
            SandboxError: The isolation itself failed.
            ToolBusy: Too many sessions are open, or programs waiting.
        """
        program = Program(code=code, timeout_s=timeout_s, memory_mb=memory_mb, stdin=stdin)
        refusal = program.refusal()
        if refusal is not None:
            return refusal
        pool = self._find_pool()
        async with self._busy, pool.turn():
            return await self._turn(pool, program)

    async def _turn(self, pool: Pool, program: Program) -> SandboxResult:
        child = self._child
        if self._is_lost or (child is not None and (self._pool is not pool or child.killed or child.ended.done())):
            self._is_lost = False
            await self._drop()
            return SandboxResult(status="crashed", error=_RESTARTED)
        try:
            return await self._ask(child or await self._open(pool, program), program)
        except BaseException:
            await self._drop()
            raise

    async def _open(self, pool: Pool, program: Program) -> Child:
        self._enter(self)
        self._pool = pool
        self._loop = asyncio.get_running_loop()
        await pool.open()
        self._zygote = await pool.zygote(self._profile(pool))
        self._child = await fork(self._zygote, program, cpu_s=_CPU_S)
        self._runs = 0
        return self._child

    async def _ask(self, child: Child, program: Program) -> SandboxResult:
        if self._idle is not None:
            self._idle.cancel()
        self._runs += 1
        child.resume()
        try:
            answer = await child.ask(program.request(self._runs, last=False), last=False, timeout_s=program.timeout_s)
        except Stuck:
            if self._zygote is not None:
                self._zygote.kill()
            await self._drop()
            return SandboxResult(status="crashed", error=_RESTARTED)
        result = judge(answer, run=self._runs, timeout_s=program.timeout_s)
        if answer.orphaned or child.killed or answer.ended or result.status in ("crashed", "memory"):
            await self._drop()
            return replace(result, error=f"{result.error or 'the interpreter has ended'}\n{_GONE}")
        child.pause()
        self._idle = asyncio.get_running_loop().call_later(self._idle_s, child.kill, "abandoned")
        return result

    async def _drop(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
        self._leave(self)
        child, self._child = self._child, None
        if child is not None and self._loop is asyncio.get_running_loop():
            await child.end()
        elif child is not None:
            child.free()

    async def lose(self) -> None:
        """Kill the child, and tell the owner so instead of running the next program."""
        await self._drop()
        self._is_lost = True

    async def aclose(self) -> None:
        """Kill the child, and wait until it is reaped; a later program starts from nothing."""
        self._is_lost = False
        if self._child is not None:
            await self._drop()
