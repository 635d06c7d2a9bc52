"""The sandbox: programs in, results out, and nothing else."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Collection
from types import TracebackType
from typing import Final, Literal, Self

from icrl.errors import ConfigError, SandboxError, ToolBusy, nearest
from icrl.runtime.sandbox.lock import LAYERS
from icrl.runtime.sandbox.pool import Pool
from icrl.runtime.sandbox.process import Setup
from icrl.runtime.sandbox.profiles import PROFILES, ProfileName, choose
from icrl.runtime.sandbox.program import Program, run_once
from icrl.runtime.sandbox.result import SandboxResult
from icrl.runtime.sandbox.roots import module_paths, read_roots
from icrl.runtime.sandbox.session import Session

__all__ = ["PolicyName", "Sandbox"]

PolicyName = Literal["restricted", "plain"]
"""Python without what only escapes need, with readable refusals; or Python as it is. The walls are the same."""
_LANGUAGES: Final = {
    "restricted": "icrl.runtime.sandbox.policy:restricted",
    "plain": "icrl.runtime.sandbox.policy:plain",
}
_PROGRAMS_PER_CORE: Final = 4


class Sandbox:
    """Runs programs that nobody has read, each in a process of its own that can only compute.

    Zygotes are started by `async with`, or by the first program. After `aclose`, and on another event loop, the next
    program starts them anew.

    Args:
        profile: `light` has the standard library ready, `sci` also numpy, scipy and sympy; `auto` has both and
            chooses by what a program mentions.
        policy: `restricted` refuses what only escapes need, with a message for the model; `plain` refuses nothing.
            The isolation does not depend on it.
        allow_unsandboxed: Run programs also where the kernel cannot isolate them.
        max_concurrency: Programs that run at once; 4 for each core if not given.
        max_queue: Programs that may wait for their turn.
        max_sessions: Sessions that may hold a process at once.
        session_idle_s: Seconds without use after which a session loses its process.
        forks_per_zygote: Programs after which a zygote is replaced.
        layers: What to lock, to measure what each costs; less than all needs `allow_unsandboxed`.

    Raises:
        ConfigError: A setting is not one of its choices, or out of range.
        SandboxError: This is not Linux.

    Example:
        >>> import asyncio
        >>> async def compute(code: str) -> str | None:
        ...     async with Sandbox(profile="light") as box:
        ...         return (await box.run(code)).value
        >>> asyncio.run(compute("sum(range(10))"))
        '45'
    """

    def __init__(
        self,
        profile: ProfileName | Literal["auto"] = "auto",
        policy: PolicyName = "restricted",
        allow_unsandboxed: bool = False,
        *,
        max_concurrency: int | None = None,
        max_queue: int = 4096,
        max_sessions: int = 256,
        session_idle_s: float = 600.0,
        forks_per_zygote: int = 10_000,
        layers: Collection[str] = LAYERS,
    ) -> None:
        _choice("profile", profile, ["auto", *PROFILES])
        _choice("policy", policy, list(_LANGUAGES))
        for layer in layers:
            _choice("layers", layer, list(LAYERS))
        concurrency = _PROGRAMS_PER_CORE * _cores() if max_concurrency is None else max_concurrency
        _positive(max_concurrency=concurrency, max_sessions=max_sessions, forks_per_zygote=forks_per_zygote)
        if max_queue < 0:
            raise ConfigError(f"max_queue: must be >= 0, not {max_queue!r}")
        if not session_idle_s > 0:
            raise ConfigError(f"session_idle_s: must be > 0 seconds, not {session_idle_s!r}")
        if set(layers) != set(LAYERS) and not allow_unsandboxed:
            raise SandboxError("layers: less than all of them needs allow_unsandboxed=True")
        if sys.platform != "linux":
            raise SandboxError(f"the sandbox needs Linux, not {sys.platform}")
        self._profile = profile
        self._policy = policy
        self._allow_unsandboxed = allow_unsandboxed
        self._layers = tuple(layers)
        self._concurrency = concurrency
        self._max_queue = max_queue
        self._max_sessions = max_sessions
        self._session_idle_s = session_idle_s
        self._forks_per_zygote = forks_per_zygote
        self._sessions: set[Session] = set()
        self._open: Pool | None = None

    def __repr__(self) -> str:
        return f"<Sandbox {self._profile} {self._policy}>"

    @property
    def fingerprint(self) -> str:
        """What besides a program decides its outcome: which Python it meets."""
        return f"sandbox profile={self._profile} policy={self._policy}"

    @property
    def zygotes(self) -> dict[str, int]:
        """Process numbers of the zygotes by profile; empty while it is closed."""
        return {} if self._open is None else self._open.pids

    async def __aenter__(self) -> Self:
        try:
            await self._pool().open()
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def run(self, code: str, *, timeout_s: float = 5.0, memory_mb: int = 1024, stdin: str = "") -> SandboxResult:
        """Run a program to its end in a process of its own.

        Args:
            code: Python source, up to 64 KiB.
            timeout_s: Wall-clock seconds until it is killed, from when it has its process.
            memory_mb: MiB of address space, that of the interpreter included.
            stdin: What it reads from standard input.

        Raises:
            ConfigError: A bound is out of range.
            SandboxError: The isolation itself failed, or is not to be had; the program's own failures are results.
            ToolBusy: Too many programs wait already.
        """
        program = Program(code=code, timeout_s=timeout_s, memory_mb=memory_mb, stdin=stdin)
        refusal = program.refusal()
        if refusal is not None:
            return refusal
        pool = self._pool()
        async with pool.turn():
            await pool.open()
            return await run_once(pool, self._kind(pool, code), program)

    def session(self) -> Session:
        """Open a REPL: programs run in it one after another share their variables, and nothing with others."""
        return Session(
            self._pool,
            profile=lambda pool: self._kind(pool, None),
            idle_s=self._session_idle_s,
            enter=self._enter,
            leave=self._sessions.discard,
            sibling=self.session,
        )

    async def aclose(self) -> None:
        """Kill every program, session and zygote, and wait until they are reaped; a later program starts anew."""
        pool, self._open = self._open, None
        if pool is None:
            return
        if pool.loop is asyncio.get_running_loop():
            await asyncio.gather(*(session.lose() for session in self._sessions))
            await pool.aclose()
        else:
            pool.abandon()

    def _pool(self) -> Pool:
        if self._open is None or self._open.loop is not asyncio.get_running_loop():
            if self._open is not None:
                self._open.abandon()
            wanted: list[ProfileName] = ["light", "sci"] if self._profile == "auto" else [self._profile]
            self._open = Pool(
                {name: self._setup(name) for name in wanted},
                concurrency=self._concurrency,
                max_queue=self._max_queue,
                forks_per_zygote=self._forks_per_zygote,
                must_prove=not self._allow_unsandboxed,
            )
        return self._open

    def _setup(self, profile: ProfileName) -> Setup:
        return Setup(
            paths=module_paths(),
            roots=read_roots(),
            layers=self._layers,
            partial=self._allow_unsandboxed,
            language=_LANGUAGES[self._policy],
            packages=PROFILES[profile].packages,
            modules=PROFILES[profile].modules,
            snippets=PROFILES[profile].snippets,
        )

    def _kind(self, pool: Pool, code: str | None) -> ProfileName:
        """Return the profile for a program; for `None`, that for any program that may follow."""
        if self._profile != "auto":
            return self._profile
        return "sci" if pool.has("sci") and (code is None or choose(code) == "sci") else "light"

    def _enter(self, session: Session) -> None:
        if len(self._sessions) >= self._max_sessions:
            raise ToolBusy(
                f"the Python sandbox holds {len(self._sessions)} sessions, as many as it may; try again later"
            )
        self._sessions.add(session)


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _choice(field: str, value: str, choices: list[str]) -> None:
    if value not in choices:
        raise ConfigError(f"{field}: must be one of {', '.join(choices)}, not {value!r}.{nearest(str(value), choices)}")


def _positive(**values: int) -> None:
    for field, value in values.items():
        if value < 1:
            raise ConfigError(f"{field}: must be >= 1, not {value!r}")
