"""Servers in processes of their own, and what is left of them afterwards."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

SCRIPTED = str(Path(__file__).parent / "scripted_service.py")


class ServerProcess:
    """A server that runs; its standard error is read all the time."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[str] = []
        self._news = asyncio.Condition()
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for line in self.process.stderr:
            async with self._news:
                self.lines.append(line.decode().rstrip("\n"))
                self._news.notify_all()
        async with self._news:
            self._news.notify_all()

    async def said(self, pattern: str, *, within_s: float = 30.0) -> re.Match[str]:
        """Wait for a line."""
        found = None

        def look() -> bool:
            nonlocal found
            found = next((match for line in self.lines if (match := re.search(pattern, line))), None)
            return found is not None or self._reading.done()

        async with asyncio.timeout(within_s), self._news:
            await self._news.wait_for(look)
        assert found is not None, "\n".join(self.lines)
        return found

    async def address(self) -> str:
        return (await self.said(r"listening on (\S+),"))[1]

    async def ready(self) -> str:
        """Wait until it answers questions, and return its address."""
        await self.said("^ready: ")
        return await self.address()

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def ended(self, *, within_s: float = 30.0) -> int:
        """Wait for its end, and return its exit code."""
        async with asyncio.timeout(within_s):
            code = await self.process.wait()
            await self._reading
        return code

    def children(self) -> set[tuple[int, str]]:
        """Return the processes below it: their ids, and when they began."""
        parents, began = {}, {}
        for pid in map(int, filter(str.isdecimal, os.listdir("/proc"))):
            if (fields := stat_of(pid)) is not None:
                parents[pid], began[pid] = int(fields[1]), fields[19]
        found = {self.process.pid}
        while more := {pid for pid, parent in parents.items() if parent in found} - found:
            found |= more
        return {(pid, began[pid]) for pid in found - {self.process.pid}}


def stat_of(pid: int) -> list[str] | None:
    """Return what `/proc` says of a process behind its name; nothing where it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except OSError:
        return None


def alive(processes: set[tuple[int, str]]) -> list[int]:
    """Return those of some processes that still are."""
    found = []
    for pid, began in processes:
        fields = stat_of(pid)
        if fields is not None and fields[19] == began and fields[0] != "Z":
            found.append(pid)
    return found


def command_lines(processes: set[tuple[int, str]]) -> list[str]:
    """Return the command lines of some processes, as everybody can read them."""
    return [Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ") for pid, _ in processes]


@asynccontextmanager
async def server_process(*arguments: str, env: dict[str, str] | None = None) -> AsyncIterator[ServerProcess]:
    """Run Python with arguments as a server; it is killed if it is still there at the end."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *arguments,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
        env={**os.environ, "ICRL_API_KEY": "", **(env or {})},
    )
    server = ServerProcess(process)
    try:
        yield server
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            await server.ended()


def scripted(latency_s: float, *flags: str) -> tuple[str, ...]:
    """Return the arguments of a scripted server."""
    return (SCRIPTED, str(latency_s), "--port", "0", *flags)
