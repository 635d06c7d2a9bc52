"""One program to run, and one run of it in a fork."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from icrl.errors import ConfigError, SandboxError
from icrl.runtime.sandbox.child import Answer, Child, Stuck
from icrl.runtime.sandbox.messages import Request, encode
from icrl.runtime.sandbox.pool import Pool
from icrl.runtime.sandbox.process import ZygoteProcess
from icrl.runtime.sandbox.profiles import ProfileName
from icrl.runtime.sandbox.result import SandboxResult
from icrl.runtime.sandbox.verdict import judge

__all__ = ["MAX_CODE_BYTES", "Program", "fork", "run_once"]

MAX_CODE_BYTES: Final = 65_536
"""Bytes of source that a program may have."""
_LEAST_HEADROOM_MB: Final = 32
_ATTEMPTS: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """Source and bounds of one run.

    Raises:
        ConfigError: A bound is not positive.

    Example:
        >>> Program(code="1 + 1", timeout_s=0.0)
        Traceback (most recent call last):
        icrl.errors.ConfigError: timeout_s: must be > 0 seconds, not 0.0
    """

    code: str
    """Python source."""
    timeout_s: float = 5.0
    """Wall-clock seconds until it is killed."""
    memory_mb: int = 1024
    """MiB of address space."""
    stdin: str = ""
    """What it reads from standard input."""

    def __post_init__(self) -> None:
        if not 0 < self.timeout_s < math.inf:
            raise ConfigError(f"timeout_s: must be > 0 seconds, not {self.timeout_s!r}")
        if self.memory_mb < 1:
            raise ConfigError(f"memory_mb: must be >= 1 MiB, not {self.memory_mb!r}")

    def refusal(self) -> SandboxResult | None:
        """Return the result of a program that cannot even be sent; `None` for every other."""
        try:
            size = len(self.code.encode())
        except UnicodeEncodeError as error:
            return SandboxResult(status="error", error=f"UnicodeEncodeError: the program is not text: {error.reason}")
        if size > MAX_CODE_BYTES:
            told = f"the program has {size} bytes of source; {MAX_CODE_BYTES} are allowed"
            return SandboxResult(status="denied", error=told)
        return None

    def request(self, run: int, *, last: bool) -> bytes:
        """Return the line that asks a child to run it.

        Args:
            run: Counts the programs of that child, from 1.
            last: Whether the child ends after it.
        """
        stdin = self.stdin.encode("utf-8", "replace").decode()
        return encode(Request(run=run, code=self.code, stdin=stdin, last=last)) + b"\n"


async def fork(zygote: ZygoteProcess, program: Program, *, cpu_s: float) -> Child:
    """Fork a child within a program's bounds.

    Args:
        zygote: What to fork.
        program: What is to run in it.
        cpu_s: Processor seconds that the child may use.

    Raises:
        ConfigError: The bound on memory is less than a child needs before it has done anything.
        Stuck: The zygote does not listen.
    """
    least = math.ceil(zygote.address_space_mb) + _LEAST_HEADROOM_MB
    if program.memory_mb < least:
        raise ConfigError(f"memory_mb: must be >= {least} MiB for what is imported in advance, not {program.memory_mb}")
    return await zygote.fork(cpu_s=math.ceil(cpu_s), memory_mb=program.memory_mb)


async def run_once(pool: Pool, profile: ProfileName, program: Program) -> SandboxResult:
    """Run a program in a child of its own.

    A program has no effect outside its child, so it is run again where the zygote died under it.

    Raises:
        SandboxError: The isolation failed, or zygotes keep dying.
    """
    for _ in range(_ATTEMPTS):
        zygote = await pool.zygote(profile)
        answer = await _attempt(zygote, program)
        if answer is not None:
            return judge(answer, run=1, timeout_s=program.timeout_s)
    raise SandboxError(f"the sandbox lost {_ATTEMPTS} processes, one after another, that a program was forked from")


async def _attempt(zygote: ZygoteProcess, program: Program) -> Answer | None:
    try:
        child = await fork(zygote, program, cpu_s=program.timeout_s + 1)
        try:
            answer = await child.ask(program.request(1, last=True), last=True, timeout_s=program.timeout_s)
        finally:
            await child.end()
    except Stuck:
        zygote.kill()
        return None
    return None if answer.orphaned else answer
