"""An MCP server as a child process of ours: started with little, bounded in what it may say, ended for sure."""

from __future__ import annotations

import asyncio
import os
import signal
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp.shared.message import SessionMessage
from mcp_types import JSONRPCError, JSONRPCResponse, jsonrpc_message_adapter

__all__ = ["stdio_transport"]

INHERITED = ("HOME", "LANG", "LC_ALL", "LC_CTYPE", "LOGNAME", "PATH", "SHELL", "TERM", "TMPDIR", "USER")
"""What a server sees of our environment; keys and tokens have to be handed over on purpose."""
MAX_MESSAGE_BYTES = 32 << 20
"""A server that writes a longer line is cut off."""
MAX_UNASKED = 10_000
"""A server that sends more messages in a row which answer nothing is cut off."""
EXIT_GRACE_S = 1.0
"""How long a server may take to exit once its input is closed, and once more after SIGTERM."""
POLL_S = 0.01
STDERR_TAIL_BYTES = 2000
CHUNK_BYTES = 1 << 16

Incoming = MemoryObjectSendStream[SessionMessage | Exception]
Outgoing = MemoryObjectReceiveStream[SessionMessage]
Streams = tuple[MemoryObjectReceiveStream[SessionMessage | Exception], MemoryObjectSendStream[SessionMessage]]


@asynccontextmanager
async def stdio_transport(
    command: Sequence[str], *, env: Mapping[str, str], cwd: Path | None, stderr: bytearray
) -> AsyncIterator[Streams]:
    """Start a server and connect to it; leaving the block ends it with everything that it started in its session.

    Args:
        command: Program and arguments.
        env: Added to the few variables that servers inherit.
        cwd: Where it runs.
        stderr: Receives the last of what it writes there.

    Raises:
        OSError: It cannot be started.
    """
    inherited = {name: os.environ[name] for name in INHERITED if name in os.environ}
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=PIPE,
        stdout=PIPE,
        stderr=PIPE,
        env=inherited | dict(env),
        cwd=cwd,
        start_new_session=True,
    )
    to_us, incoming = anyio.create_memory_object_stream[SessionMessage | Exception](0)
    outgoing, from_us = anyio.create_memory_object_stream[SessionMessage](0)
    with to_us, incoming, outgoing, from_us:
        pumps = [
            asyncio.create_task(_read(process, to_us)),
            asyncio.create_task(_write(process, from_us, to_us)),
            asyncio.create_task(_tail(process, stderr)),
        ]
        try:
            yield incoming, outgoing
        finally:
            for pump in pumps:
                pump.cancel()
            try:
                await asyncio.gather(*pumps, return_exceptions=True)
            finally:
                await _end(process)


async def _read(process: Process, to_us: Incoming) -> None:
    """Hand messages over until the server closes its output, or says too much."""
    assert process.stdout is not None
    unasked = 0
    # Readers and the client take the end of the stream for the end of the server, which it then is.
    with to_us, suppress(anyio.BrokenResourceError, anyio.ClosedResourceError, ConnectionError):
        async for line in _lines(process.stdout):
            message = _parse(line)
            answers = isinstance(message, SessionMessage) and isinstance(
                message.message, JSONRPCResponse | JSONRPCError
            )
            unasked = 0 if answers else unasked + 1
            if unasked > MAX_UNASKED:
                return
            await to_us.send(message)


async def _lines(stream: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """Split a stream into lines; it ends where one is too long."""
    pieces: list[bytes] = []
    held = 0
    while chunk := await stream.read(CHUNK_BYTES):
        first, *others = chunk.split(b"\n")
        pieces.append(first)
        held += len(first)
        if held > MAX_MESSAGE_BYTES:
            return
        for other in others:
            yield b"".join(pieces)
            pieces, held = [other], len(other)


def _parse(line: bytes) -> SessionMessage | Exception:
    try:
        return SessionMessage(jsonrpc_message_adapter.validate_json(line, by_name=False))
    except ValueError as error:
        return error


async def _write(process: Process, from_us: Outgoing, to_us: Incoming) -> None:
    assert process.stdin is not None
    try:
        async for message in from_us:
            line = message.message.model_dump_json(by_alias=True, exclude_unset=True)
            process.stdin.write(line.encode(errors="replace") + b"\n")
            await process.stdin.drain()
    except (OSError, RuntimeError):
        to_us.close()


async def _tail(process: Process, tail: bytearray) -> None:
    assert process.stderr is not None
    while chunk := await process.stderr.read(CHUNK_BYTES):
        tail += chunk
        del tail[:-STDERR_TAIL_BYTES]
        # Whoever floods its log waits for us, instead of us for it.
        await asyncio.sleep(POLL_S)


async def _end(process: Process) -> None:
    """Close the server's input, then ask it to end, then kill it; whatever it left in its session goes with it."""
    assert process.stdin is not None
    process.stdin.close()
    try:
        for number in (signal.SIGTERM, signal.SIGKILL):
            if await _exited(process):
                break
            _signal(process, number)
    finally:
        _signal(process, signal.SIGKILL)
        await _exited(process)
        # A descendant that escaped may hold our ends of the pipes open.
        process._transport.close()  # type: ignore[attr-defined]


async def _exited(process: Process) -> bool:
    """Tell whether the process ends within the grace; `Process.wait` would wait for descendants' pipes too."""
    loop = asyncio.get_running_loop()
    ends = loop.time() + EXIT_GRACE_S
    # What sets the return code sets no event of ours.
    while process.returncode is None and loop.time() < ends:  # noqa: ASYNC110
        await asyncio.sleep(POLL_S)
    return process.returncode is not None


def _signal(process: Process, number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)
