"""CPU per request of the client's HTTP and of bare aiohttp, against a server that answers every request at once."""

from __future__ import annotations

import asyncio
import gc
import json
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from rich.table import Table
from rollouts_stub import serving

from icrl.runtime.engines.sglang.client import Client

Post = Callable[[], Awaitable[bytes]]
TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Transport:
    """Client CPU per request."""

    in_flight: int = 64
    """Requests under way at once."""
    requests: int = 4096
    """Requests a measurement."""
    repeats: int = 7
    """Measurements of each kind, in turns; the median counts."""
    ids: int = 1000
    """Token ids in a request."""
    tokens: int = 160
    """Tokens in a reply, with log-probabilities."""


def measure(options: Transport) -> list[dict[str, Any]]:
    """Return a row for every client."""
    with serving(Path(__file__), str(options.tokens)) as address:
        return asyncio.run(_measure(options, address))


async def _measure(options: Transport, address: str) -> list[dict[str, Any]]:
    payload = json.dumps({"input_ids": [*range(100_000, 100_000 + options.ids)]}, separators=(",", ":")).encode()
    async with _bare_aiohttp(address, payload) as bare, _client(address, payload) as own:
        posts: dict[str, Post] = {"aiohttp": bare, "icrl": own}
        if len({await post() for post in posts.values()}) > 1:
            raise RuntimeError("the clients got different replies")
        samples: dict[str, list[float]] = {name: [] for name in posts}
        for post in posts.values():
            await _spent_us(options, post)  # connections, compiled things
        for _ in range(options.repeats):
            for name, post in posts.items():
                samples[name].append(await _spent_us(options, post))
    return [
        {"client": name, "median_us": statistics.median(all_), "samples_us": all_} for name, all_ in samples.items()
    ]


async def _spent_us(options: Transport, post: Post) -> float:
    """Return CPU µs per request; those who ask are tasks that live as long as the measurement, as trajectories do."""

    async def ask() -> None:
        for _ in range(options.requests // options.in_flight):
            await post()

    gc.collect()
    started = time.process_time()
    await asyncio.gather(*(ask() for _ in range(options.in_flight)))
    return (time.process_time() - started) / (options.requests // options.in_flight * options.in_flight) * 1e6


@asynccontextmanager
async def _bare_aiohttp(address: str, payload: bytes) -> AsyncIterator[Post]:
    """One session, as cheap as it can be set up, and nothing around it: no errors, no second attempt."""
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        cookie_jar=aiohttp.DummyCookieJar(),
        skip_auto_headers=("User-Agent", "Accept-Encoding", "Accept"),
        timeout=aiohttp.ClientTimeout(total=TIMEOUT_S),
    )
    url, headers = f"{address}/generate", {"Content-Type": "application/json"}

    async def post() -> bytes:
        return await (await session.request("POST", url, data=payload, headers=headers)).read()

    async with session:
        yield post


@asynccontextmanager
async def _client(address: str, payload: bytes) -> AsyncIterator[Post]:
    client = Client(address)
    try:
        yield lambda: client.post("/generate", payload, timeout_s=TIMEOUT_S)
    finally:
        await client.aclose()


class _Instant(asyncio.Protocol):
    """Answers whatever has arrived whole with the same bytes."""

    def __init__(self, reply: bytes) -> None:
        self._reply = reply
        self._arrived = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport

    def data_received(self, data: bytes) -> None:
        self._arrived += data
        head, end, body = self._arrived.partition(b"\r\n\r\n")
        if end and len(body) == int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]):
            self._arrived = b""
            self._transport.write(self._reply)


def _reply_of(tokens: int) -> bytes:
    """Spell a reply as SGLang does, with the fields that it sends with its framework's defaults."""
    meta = {
        "id": "icrl-0123abcd-1f/0.0/0",
        "finish_reason": {"type": "stop", "matched": 151645},
        "prompt_tokens": 1000,
        "weight_version": "default",
        "completion_tokens": tokens,
        "cached_tokens": 700,
        "output_token_logprobs": [[-0.123456789012345, 100_000 + i, None] for i in range(tokens)],
    }
    body = json.dumps({"text": "", "output_ids": [*range(100_000, 100_000 + tokens)], "meta_info": meta}).encode()
    head = "date: Thu, 01 Jan 2026 00:00:00 GMT\r\nserver: uvicorn\r\ncontent-type: application/json"
    return f"HTTP/1.1 200 OK\r\n{head}\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


async def _serve(tokens: int) -> None:
    reply = _reply_of(tokens)
    server = await asyncio.get_running_loop().create_server(lambda: _Instant(reply), "127.0.0.1", 0)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Show the rows."""
    shown = Table(title="client CPU per request, server instant")
    for column in ("client", "median µs", "all µs"):
        shown.add_column(column, justify="right")
    for row in rows:
        shown.add_row(row["client"], f"{row['median_us']:.0f}", " ".join(f"{us:.0f}" for us in row["samples_us"]))
    return shown


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        asyncio.run(_serve(int(sys.argv[1])))
