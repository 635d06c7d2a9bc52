"""A stub in a process of its own, so that its work is not counted as its client's."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Sequence
from typing import Any

from icrl.testing.script import Reply, Script
from icrl.testing.stub.server import SGLangStub

__all__ = ["run_stub"]


def run_stub(replies: Script | Sequence[Reply], announce: Callable[[str], object], /, **options: Any) -> None:
    """Serve until the process is told to end by SIGTERM or SIGINT.

    Args:
        replies: As for `SGLangStub`.
        announce: Called with the address; the send method of a pipe, for one.
        options: The other arguments of `SGLangStub`.

    Example:
        A server in a process of its own, which is to be ended with `process.terminate()`:

            ours, theirs = multiprocessing.Pipe()
            process = multiprocessing.get_context("spawn").Process(target=run_stub, args=(script, theirs.send))
            process.start()
            address = ours.recv()
    """
    asyncio.run(_serve(replies, announce, options))


async def _serve(replies: Script | Sequence[Reply], announce: Callable[[str], object], options: dict[str, Any]) -> None:
    ended = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, ended.set)
    async with SGLangStub(replies, **options) as stub:
        announce(stub.address)
        await ended.wait()
