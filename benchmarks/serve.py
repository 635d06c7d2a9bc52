"""What the server costs: requests, first tokens, CPU per streamed event, memory per open stream.

The server is a process of its own with a scripted engine that gives every open stream one word at each beat, as an
engine with a batch does; the load comes from this process over real sockets.
"""

from __future__ import annotations

import asyncio
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self

from rich.console import Console
from rich.table import Table
from serve_server import SHORT, WORDS

from icrl.config import load
from icrl.errors import ConfigError

PATHS = {"chat": "/v1/chat/completions", "responses": "/v1/responses"}
BODIES = {
    "chat": {"messages": [{"role": "user", "content": "Say something."}], "stream": True},
    "responses": {"input": "Say something.", "stream": True, "store": False},
}
WORD_EVENTS = {"chat": rb'"content":"([^"]+)"', "responses": rb'output_text.delta"[^}]*"delta":"([^"]*)"'}
LAST_CHUNK = b"\r\n0\r\n\r\n"
SETTLE_S = 0.5
CONNECTING = 64
VANISHING = 20
GONE_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Serve:
    """Requests, first tokens, CPU and memory of the server with a scripted engine."""

    streams: tuple[int, ...] = (1, 64, 1000)
    """Streams that are open at once, one row each."""
    protocols: tuple[Literal["chat", "responses"], ...] = ("chat", "responses")
    """Protocols to speak."""
    beat_s: float = 0.1
    """Seconds between two words of a stream."""
    requests: int = 2000
    """Short requests for the rate, all connections together."""
    json: Path | None = None
    """Also write the figures to this file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What was measured with so many streams."""

    protocol: str
    streams: int
    requests_per_s: float
    """Streamed requests of a few words, one after the other on every connection."""
    first_token_p50_ms: float
    first_token_p95_ms: float
    """From sending such a request to the first word."""
    events: int
    """Events of the long streams."""
    cpu_us_per_event: float
    """CPU of the server process, engine included, from the first word of the long streams to their end."""
    open_us: float
    """CPU of the server process to open a stream."""
    engine_us_per_event: float
    """CPU of the same engine, called directly with as many requests."""
    kib_per_stream: float
    """Memory while all streams are open, less that before."""
    leaked_kib: float
    """Memory afterwards, less that after the same load before."""
    leaked_tasks: int
    """Tasks afterwards, less those before."""
    vanished_p50_ms: float
    vanished_max_ms: float
    """From a client's vanishing to the end of its engine request; one client after the other."""


def main(argv: Sequence[str]) -> None:
    options = load(Serve, argv, prog="benchmarks/run.py serve", description=str(Serve.__doc__))
    for name in ("beat_s", "requests"):
        if not getattr(options, name) > 0:
            raise ConfigError(f"{name}: must be > 0, not {getattr(options, name)}")
    rows = []
    for protocol in options.protocols:
        for streams in options.streams:
            with ServerProcess(options.beat_s) as server:
                rows.append(asyncio.run(measure(options, server, protocol, streams)))
    show(rows)
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1), encoding="utf-8")


async def measure(options: Serve, server: ServerProcess, protocol: str, streams: int) -> Row:
    engine_us = server.ask("direct", streams)["cpu_s"] / (streams * len(WORDS)) * 1e6
    empty = server.ask("memory")
    *_, open_kib = await long_streams(server, protocol, streams)  # the first time, memory grows
    await asyncio.sleep(SETTLE_S)
    before = server.ask("memory")
    events, open_s, stream_s, _ = await long_streams(server, protocol, streams)
    await asyncio.sleep(SETTLE_S)
    after = server.ask("memory")
    vanished = sorted([await vanish(server, protocol) for _ in range(VANISHING)])
    rate, first = await short_requests(server, protocol, streams, options.requests)
    return Row(
        protocol=protocol,
        streams=streams,
        requests_per_s=rate,
        first_token_p50_ms=1e3 * statistics.median(first),
        first_token_p95_ms=1e3 * sorted(first)[int(0.95 * len(first))],
        events=events,
        cpu_us_per_event=stream_s / events * 1e6,
        open_us=open_s / streams * 1e6,
        engine_us_per_event=engine_us,
        kib_per_stream=(open_kib - empty["kib"]) / streams,
        leaked_kib=after["kib"] - before["kib"],
        leaked_tasks=after["tasks"] - before["tasks"],
        vanished_p50_ms=1e3 * statistics.median(vanished),
        vanished_max_ms=1e3 * vanished[-1],
    )


async def vanish(server: ServerProcess, protocol: str) -> float:
    """Close a stream that was begun, and return the seconds until the engine's request was cancelled."""
    server.ask("beat", server.beat_s)
    before = len(server.ask("cancelled")["at"])
    reader, writer = await asyncio.open_connection(server.host, server.port)
    writer.write(server.request(protocol))
    await reader.readuntil(b"word0")
    closed_at = time.monotonic()
    writer.transport.abort()
    while len(cancelled := server.ask("cancelled")["at"]) == before:
        if time.monotonic() - closed_at > GONE_S:
            raise RuntimeError("the engine's request outlived its client")
        await asyncio.sleep(0.001)  # in which the socket is closed, too
    return cancelled[-1] - closed_at


async def short_requests(
    server: ServerProcess, protocol: str, connections: int, requests: int
) -> tuple[float, list[float]]:
    """Return requests a second and the seconds to each first word."""
    server.ask("beat", 0)
    each = max(4, requests // connections)
    first: list[float] = []

    async def ask() -> None:
        reader, writer = await asyncio.open_connection(server.host, server.port)
        for _ in range(each):
            sent = time.perf_counter()
            writer.write(server.request(protocol))
            data = b""
            while b'"word0' not in data:
                data += await reader.read(65536)
            first.append(time.perf_counter() - sent)
            while not data.endswith(LAST_CHUNK):
                data += await reader.read(65536)
        writer.close()

    started = time.perf_counter()
    await asyncio.gather(*(ask() for _ in range(connections)))
    return len(first) / (time.perf_counter() - started), first


async def long_streams(server: ServerProcess, protocol: str, streams: int) -> tuple[int, float, float, float]:
    """Open all streams, let them run to their end and check every word.

    Returns:
        Events, CPU seconds of the server for opening, and for streaming, and KiB while all are open.
    """
    started_s = server.ask("beat", -1)["cpu_s"]  # nobody gets a word before all are there
    connecting = asyncio.Semaphore(CONNECTING)
    clients = [Stream(server.request(protocol)) for _ in range(streams)]

    async def open_one(client: Stream) -> None:
        async with connecting:
            await asyncio.get_running_loop().create_connection(lambda: client, server.host, server.port)
            await client.opened

    await asyncio.gather(*map(open_one, clients))
    opened_s = server.ask("cpu")["cpu_s"]
    kib = server.ask("memory")["kib"]
    beating_s = server.ask("beat", server.beat_s)["cpu_s"]
    bodies = await asyncio.gather(*(client.ended for client in clients))
    ended_s = server.ask("cpu")["cpu_s"]
    for body in bodies:
        words = b"".join(re.findall(WORD_EVENTS[protocol], body))
        if words.decode() != " ".join(WORDS):
            raise RuntimeError(f"a stream did not come whole and in order: {words!r}")
    events = sum(body.count(b"\n\n") for body in bodies)
    return events, opened_s - started_s, ended_s - beating_s, kib


class Stream(asyncio.Protocol):
    """A client that does next to nothing until its stream is over."""

    def __init__(self, request: bytes) -> None:
        loop = asyncio.get_running_loop()
        self.opened: asyncio.Future[None] = loop.create_future()
        self.ended: asyncio.Future[bytes] = loop.create_future()
        self._request = request
        self._pieces: list[bytes] = []
        self._tail = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._pieces.append(data)
        if not self.opened.done() and b"\n\n" in data:
            self.opened.set_result(None)
        self._tail = (self._tail + data)[-len(LAST_CHUNK) :]
        if self._tail == LAST_CHUNK:
            self._transport.close()
            head, _, body = b"".join(self._pieces).partition(b"\r\n\r\n")
            if b" 200 " not in head[:20]:
                self.ended.set_exception(RuntimeError(head.decode()))
            else:
                self.ended.set_result(re.sub(rb"\r\n[0-9a-f]+\r\n", b"", b"\r\n" + body))


class ServerProcess:
    """The server, which answers commands on its standard input."""

    def __init__(self, beat_s: float) -> None:
        self.beat_s = beat_s

    def __enter__(self) -> Self:
        command = [sys.executable, str(Path(__file__).parent / "serve_server.py")]
        with ExitStack() as stack:
            self._process = stack.enter_context(
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
            stack.callback(self._process.terminate)
            self.host, self.port = self.ask("address")["address"]
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def ask(self, command: str, argument: float = 0) -> dict[str, Any]:
        """Give a command and wait for its outcome."""
        if self._process.stdin is None or self._process.stdout is None:
            raise RuntimeError("the server has no pipes")
        print(command, argument, file=self._process.stdin, flush=True)
        return dict(json.loads(self._process.stdout.readline()))

    def request(self, protocol: str) -> bytes:
        """Write a request."""
        body = json.dumps(BODIES[protocol]).encode()
        head = f"POST {PATHS[protocol]} HTTP/1.1\r\nHost: {self.host}\r\nContent-Type: application/json\r\n"
        return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def show(rows: Sequence[Row]) -> None:
    table = Table(title=f"icrl serve with a scripted engine; {len(WORDS)} words a stream, {SHORT} a short request")
    for column in (
        "protocol",
        "streams",
        "requests/s",
        "first token p50 ms",
        "p95 ms",
        "CPU µs/event",
        "of it engine",
        "µs to open",
        "KiB/stream",
        "left KiB",
        "left tasks",
        "vanished p50 ms",
        "max ms",
    ):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            row.protocol,
            str(row.streams),
            f"{row.requests_per_s:.0f}",
            f"{row.first_token_p50_ms:.1f}",
            f"{row.first_token_p95_ms:.1f}",
            f"{row.cpu_us_per_event:.1f}",
            f"{row.engine_us_per_event:.1f}",
            f"{row.open_us:.0f}",
            f"{row.kib_per_stream:.1f}",
            f"{row.leaked_kib:.0f}",
            str(row.leaked_tasks),
            f"{row.vanished_p50_ms:.1f}",
            f"{row.vanished_max_ms:.1f}",
        )
    Console(width=150).print(table)
