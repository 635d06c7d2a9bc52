"""A server that does exactly what the test says, byte by byte, and a client that asks it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

from icrl.runtime.engines.sglang.client import Client

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
ENDLESS = b"HTTP/1.1 200 OK\r\n\r\n"
MEBI = 1 << 20

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def listening(handler: Handler, host: str = "127.0.0.1", **settings: Any) -> AsyncIterator[str]:
    """Serve, and say where; at the end nothing is left of it."""
    handling: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(handler(reader, writer))
        handling[task] = writer
        await asyncio.wait([task])

    server = await asyncio.start_server(serve, host, 0, **settings)
    name = f"[{host}]" if ":" in host else host
    scheme = "https" if "ssl" in settings else "http"
    try:
        yield f"{scheme}://{name}:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task, writer in handling.items():
            task.cancel()
            with suppress(AttributeError):  # of a transport that closed after its last byte, in Python 3.11
                writer.transport.abort()
        await asyncio.gather(*handling, return_exceptions=True)
        await asyncio.sleep(0)


async def take_request(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    lengths = [line.split(b":")[1] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")]
    return head + await reader.readexactly(int(lengths[0]) if lengths else 0)


class Server:
    """Sends the next reply to every request, and notes the requests of each connection."""

    def __init__(self, *replies: bytes, close: bool = False, drip: bool = False) -> None:
        self.replies = [*replies]
        self.close, self.drip = close, drip
        self.requests: list[list[bytes]] = []
        self.ended = asyncio.Event()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        mine: list[bytes] = []
        self.requests.append(mine)
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while self.replies:
                mine.append(await take_request(reader))
                await self._send(writer, self.replies.pop(0))
                if self.close:
                    break
            else:
                await reader.read()
                self.ended.set()
        writer.close()

    async def _send(self, writer: asyncio.StreamWriter, reply: bytes) -> None:
        for piece in [reply[i : i + 1] for i in range(len(reply))] if self.drip else [reply]:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)


@asynccontextmanager
async def asked(handler: Any, **settings: Any) -> AsyncIterator[Client]:
    """A client of a server that does what the handler does."""
    async with listening(handler, **settings) as address:
        client = Client(address)
        try:
            yield client
        finally:
            await client.aclose()


async def streamed(client: Client, payload: bytes = b"{}", **patience: Any) -> bytes:
    async with client.stream("/x", payload, **patience) as reply:
        return b"".join([piece async for piece in reply])
