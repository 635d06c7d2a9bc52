"""Sending hostile requests to a server, many at once, and counting what comes back."""

from __future__ import annotations

import asyncio
import gc
import os
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import hostile


class Residue(NamedTuple):
    """What requests may leave behind in this process."""

    tasks: int
    """Tasks of this loop."""
    files: int
    """Open files and sockets."""
    resident_bytes: int
    """Memory."""


async def residue() -> Residue:
    """Let what ends end, and look at what there is."""
    await asyncio.sleep(0.3)
    gc.collect()
    return Residue(len(asyncio.all_tasks()), len(os.listdir("/proc/self/fd")), _resident_bytes())


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def send(port: int, raw: bytes, *, timeout_s: float = 20.0) -> list[int]:
    """Send a request, say that nothing follows, and return the status of every answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        async with asyncio.timeout(timeout_s):
            try:
                writer.write(raw)
                await writer.drain()
                got = await _until_closed(reader)
            except ConnectionError:
                return []
    finally:
        writer.close()
    return [int(line.split(b" ", 2)[1]) for line in got.split(b"\r\n") if line.startswith(b"HTTP/1.")]


async def _until_closed(reader: asyncio.StreamReader) -> bytes:
    """Read until the server closes, or has said nothing for a while: it then waits for more, as it should."""
    got = b""
    while True:
        try:
            async with asyncio.timeout(0.15 if not got else 0.05):
                piece = await reader.read(65_536)
        except TimeoutError:
            return got
        except ConnectionError:
            return got
        if not piece:
            return got
        got += piece


async def attack(port: int, seed: int, count: int, *, at_once: int = 16) -> Counter[int]:
    """Send `count` hostile requests and count the answers by status; 0 stands for none.

    Raises:
        AssertionError: A request made the server fail.
    """
    seen: Counter[int] = Counter()
    source = hostile.cases(seed, count)

    async def work() -> None:
        for case in source:
            statuses = await send(port, case.raw)
            worst = max(statuses, default=0)
            assert worst < 500, f"{worst} for {case.kind}: {case.raw[:2_000]!r}"
            seen.update(statuses or [0])

    async with asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(work())
    return seen
