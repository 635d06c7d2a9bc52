"""A web on loopback: search services that misbehave in every way, and pages that do."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from aiohttp.abc import AbstractResolver

ROWS = [
    {"title": "Rikor <|im_start|>", "url": "https://rikor.example/", "text": "Its code\u200b is 113."},
    {"title": "Script", "url": "javascript:alert(1)", "text": "dropped"},
    {"title": "", "url": "https://nebar.example/map?a=1&b=2", "text": None},
]
BIG_BYTES = 10_000_000


def _renamed(url: str, text: str) -> list[dict[str, Any]]:
    return [{"title": row["title"], url: row["url"], text: row["text"], "extra": [1]} for row in ROWS]


ANSWERS = {
    "searxng": {"query": "q", "results": _renamed("url", "content"), "unresponsive_engines": [["bing", "timeout"]]},
    "serper": {"searchParameters": {}, "organic": _renamed("link", "snippet")},
    "brave": {"type": "search", "web": {"type": "search", "results": _renamed("url", "description")}},
    "tavily": {"query": "q", "results": _renamed("url", "content"), "response_time": 0.1},
}
EMPTY = {
    "searxng": {"results": [], "unresponsive_engines": []},
    "serper": {"organic": []},
    "brave": {"type": "search"},
    "tavily": {"results": []},
}
DDGS_PAGE = (
    '<html><body><div class="body"><h2>Rikor</h2><a href="https://rikor.example/">Its code is 113.</a></div></body>'
)


@dataclass
class FakeWeb:
    """What was asked, and how to answer."""

    mode: str = "ok"
    requests: list[web.Request] = field(default_factory=list)
    bodies: list[Any] = field(default_factory=list)
    pages: dict[str, Callable[[web.Request], Any]] = field(default_factory=dict)
    robots: tuple[int, str] = (404, "")
    url: str = ""

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    @property
    def paths(self) -> list[str]:
        return [request.path for request in self.requests]

    def page(self, path: str, text: str | bytes, content_type: str | None = "text/html", **headers: str) -> None:
        """Serve a body at a path."""
        data = text.encode() if isinstance(text, str) else text
        all_headers = {name.replace("_", "-"): value for name, value in headers.items()}
        if content_type:
            all_headers["Content-Type"] = content_type
        self.pages[path] = lambda _: web.Response(body=data, headers=all_headers)

    def redirect(self, path: str, location: str, status: int = 302) -> None:
        self.pages[path] = lambda _: web.Response(status=status, headers={"Location": location})

    def status(self, path: str, status: int, **headers: str) -> None:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.pages[path] = lambda _: web.Response(status=status, text="secret body", headers=named)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        if request.content_type == "application/json":
            self.bodies.append(await request.json())
        if request.path in self.pages:
            made = self.pages[request.path](request)
            return await made if asyncio.iscoroutine(made) else made
        if request.path == "/robots.txt":
            return web.Response(status=self.robots[0], text=self.robots[1])
        return await misbehave(request, self.mode)


async def misbehave(request: web.Request, mode: str) -> web.StreamResponse:
    """Answer as the service that the path names, or as it must not."""
    service = request.path.strip("/").split("/")[0]
    if mode.isdigit():
        return web.Response(status=int(mode), text="your key is bad", headers={"Retry-After": "7"})
    match mode:
        case "ok":
            return web.json_response(ANSWERS[service])
        case "empty":
            return web.json_response(EMPTY[service])
        case "gzip":
            body = gzip.compress(json.dumps(ANSWERS[service]).encode())
            return web.Response(body=body, headers={"Content-Encoding": "gzip", "Content-Type": "text/plain"})
        case "bomb":
            return web.Response(body=bomb(), headers={"Content-Encoding": "gzip"})
        case "br":
            return web.Response(body=b"\x0b\x02\x80", headers={"Content-Encoding": "br"})
        case "blank":
            return web.Response(body=b"")
        case "garbage":
            return web.Response(body=b"\xff\xfe<html>", content_type="application/json")
        case "other":
            return web.json_response([1, 2])
        case "deep":
            return web.Response(text="[" * 100_000)
        case "types":
            return web.json_response({"results": 3, "organic": "x", "type": 1, "web": []})
        case "big":
            return web.Response(body=b" " * BIG_BYTES)
        case "drip":
            return await drip(request)
        case "hang":
            await asyncio.sleep(60)
        case "cut":
            return await cut_off(request)
        case "loop":
            return web.Response(status=302, headers={"Location": request.path})
    raise AssertionError(mode)


def bomb(megabytes: int = 10) -> bytes:
    return gzip.compress(b" " * megabytes * 1_000_000)


async def drip(request: web.Request) -> web.StreamResponse:
    """Send a byte now and then, for ever."""
    response = web.StreamResponse(headers={"Content-Type": "text/html"})
    await response.prepare(request)
    with suppress(ConnectionResetError):
        while True:
            await response.write(b" ")
            await asyncio.sleep(0.01)
    return response


async def cut_off(request: web.Request) -> web.StreamResponse:
    """Promise more than is sent."""
    response = web.StreamResponse(headers={"Content-Length": "1000", "Content-Type": "text/html"})
    await response.prepare(request)
    await response.write(b"{")
    assert request.transport is not None
    request.transport.close()
    return response


@asynccontextmanager
async def serve(host: str = "127.0.0.1") -> AsyncIterator[FakeWeb]:
    fake = FakeWeb()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", fake.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.05)
    await runner.setup()
    site = web.TCPSite(runner, host, 0)
    await site.start()
    fake.url = f"http://{host}:{runner.addresses[0][1]}"
    try:
        yield fake
    finally:
        await runner.cleanup()


class Names(AbstractResolver):
    """Resolves from lists: each lookup of a name takes its next entry, and the last one stays."""

    def __init__(self, **answers: list[list[str]]) -> None:
        self._answers = {name.replace("_", "."): list(entries) for name, entries in answers.items()}
        self.asked: list[str] = []

    async def resolve(self, host: str, port: int = 0, family: int = 0) -> list[Any]:
        self.asked.append(host)
        entries = self._answers.get(host)
        if not entries:
            raise OSError(f"no such name: {host}")
        found = entries.pop(0) if len(entries) > 1 else entries[0]
        return [
            {"hostname": host, "host": ip, "port": port, "family": 10 if ":" in ip else 2, "proto": 6, "flags": 4}
            for ip in found
        ]

    async def close(self) -> None:
        pass
