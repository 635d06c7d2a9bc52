"""A chat endpoint that says what it is told, in pieces, and may fail."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer


class ChatEndpoint:
    """What a fake endpoint answers and was asked."""

    def __init__(self, replies: Sequence[Any], *, piece: int = 3, models: Sequence[str] = ("large",)) -> None:
        self.replies = list(replies)
        """Text, a status, or raw bytes of a stream; in the order of requests."""
        self.piece = piece
        """Characters an event."""
        self.models = models
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.finish = "stop"
        self.pause: asyncio.Event | None = None
        """Waited for after the first event."""
        self.gone = asyncio.Event()
        """Set when a client hangs up."""
        self.url = ""

    async def complete(self, request: web.Request) -> web.StreamResponse:
        self.bodies.append(await request.json())
        self.keys.append(request.headers.get("Authorization"))
        reply = self.replies.pop(0)
        if isinstance(reply, int):
            return web.json_response({"error": {"message": f"status {reply} it is"}}, status=reply)
        stream = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await stream.prepare(request)
        try:
            await self._write(stream, reply)
        except (ConnectionResetError, asyncio.CancelledError):
            self.gone.set()
            raise
        return stream

    async def _write(self, stream: web.StreamResponse, reply: Any) -> None:
        if isinstance(reply, bytes):
            await stream.write(reply)
            return
        await stream.write(b": hello\r\n\r\n" + _event({"role": "assistant", "content": ""}))
        for at in range(0, len(reply), self.piece):
            await stream.write(_event({"content": reply[at : at + self.piece]}))
            if self.pause is not None:
                await self.pause.wait()
        await stream.write(_event({}, self.finish) + b'data: {"choices": [], "usage": {}}\n\ndata: [DONE]\n\n')

    async def list(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": name} for name in self.models]})


def _event(delta: dict[str, Any], finish: str | None = None) -> bytes:
    return b"data: " + json.dumps({"choices": [{"delta": delta, "finish_reason": finish}]}).encode() + b"\n\n"


@asynccontextmanager
async def chat_endpoint(
    *replies: Any, kind: type[ChatEndpoint] = ChatEndpoint, **options: Any
) -> AsyncIterator[ChatEndpoint]:
    """Serve an endpoint while the block runs."""
    endpoint = kind(replies, **options)
    app = web.Application()
    app.router.add_post("/v1/chat/completions", endpoint.complete)
    app.router.add_get("/v1/models", endpoint.list)
    async with TestServer(app, handler_cancellation=True) as server:
        endpoint.url = str(server.make_url("/v1"))
        yield endpoint
