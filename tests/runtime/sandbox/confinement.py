"""What the tests of the sandbox share: whether it can run here, and a look at the processes behind it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from icrl.errors import SandboxError
from icrl.runtime.sandbox.landlock import supported
from icrl.runtime.sandbox.syscalls import current

__all__ = ["children_of", "eventually", "needs_layers", "state_of"]


def _why_not() -> str:
    try:
        return "" if supported(current()) else "the kernel has no Landlock: nothing of the sandbox can be tested here"
    except SandboxError as error:
        return str(error)


needs_layers = pytest.mark.skipif(bool(_why_not()), reason=_why_not())


def _stat(pid: str) -> list[str]:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ["gone", "0"]


def state_of(pid: int) -> str:
    """The kernel's letter for what a process does, or `gone`."""
    return _stat(str(pid))[0]


def children_of(pid: int) -> list[int]:
    """Processes whose parent it is."""
    numbers = [entry.name for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [int(number) for number in numbers if _stat(number)[1] == str(pid)]


async def eventually(condition) -> None:
    """Wait until something holds."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - what is waited for sets no event
            await asyncio.sleep(0.005)
