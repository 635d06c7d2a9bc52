from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web
from watched import until

from icrl.errors import ConfigError, ToolError, ToolUnavailable
from icrl.runtime.tools.corpus import Hit
from icrl.runtime.tools.retrievers import remote
from icrl.runtime.tools.retrievers.remote import HttpRetriever, as_document

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Server = Callable[..., Awaitable[HttpRetriever]]


@pytest.fixture
async def serve() -> AsyncIterator[Server]:
    """Run a handler behind `/retrieve` and return a client of it."""
    runners: list[web.AppRunner] = []
    clients: list[HttpRetriever] = []

    async def start(handler: Handler, **options: Any) -> HttpRetriever:
        app = web.Application()
        app.router.add_post("/retrieve", handler)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        runners.append(runner)
        host, port = runner.addresses[0][:2]
        clients.append(HttpRetriever(f"http://{host}:{port}", **options))
        return clients[-1]

    yield start
    for client in clients:
        await client.aclose()
    for runner in runners:
        await runner.cleanup()


def says(body: str | bytes, **options: Any) -> Handler:
    async def handle(_: web.Request) -> web.Response:
        data = body.encode() if isinstance(body, str) else body
        return web.Response(body=data, content_type="application/json", **options)

    return handle


def echo(log: list[Any]) -> Handler:
    """Answer every query with itself, as Search-R1's server does."""

    async def handle(request: web.Request) -> web.Response:
        body = await request.json()
        log.append((body, dict(request.headers)))
        await asyncio.sleep(0.02)
        documents = [
            [{"id": str(i), "contents": f'"{q}"\nText {i}.'} for i in range(body["topk"])] for q in body["queries"]
        ]
        result = [[{"document": d, "score": 9.0 - i} for i, d in enumerate(one)] for one in documents]
        return web.json_response({"result": result})

    return handle


async def test_it_speaks_the_protocol(serve):
    log: list[Any] = []
    client = await serve(echo(log), api_key="secret")
    (hits,) = await client.search(["Rikor"], 2)
    assert hits == [Hit(id=str(i), title="Rikor", text=f"Text {i}.", score=9.0 - i) for i in range(2)]
    body, headers = log[0]
    assert body == {"queries": ["Rikor"], "topk": 2, "return_scores": True}
    assert headers["Authorization"] == "Bearer secret"
    assert headers["Content-Type"] == "application/json"


async def test_queries_that_wait_are_sent_together(serve):
    log: list[Any] = []
    client = await serve(echo(log))
    found = await asyncio.gather(*(client.search([f"q{i}"], 1 + i % 3) for i in range(100)))
    assert [(hits[0].title, len(hits)) for (hits,) in found] == [(f"q{i}", 1 + i % 3) for i in range(100)]
    assert len(log) == remote.CONNECTIONS


@pytest.mark.parametrize(
    ("document", "hit"),
    [
        ({"id": 7, "contents": "no title"}, ("7", "", "no title")),
        ({"title": "T", "text": "x\ny", "contents": '"T"\nx\ny'}, ("", "T", "x\ny")),
        ({"id": "a", "title": "T", "contents": "U\nx"}, ("a", "T", "x")),
        ({"id": "a", "text": "x", "more": [1]}, ("a", "", "x")),
    ],
)
async def test_documents_of_all_kinds_of_servers_are_read(serve, document, hit):
    client = await serve(says(json.dumps({"result": [[{"document": document, "score": 1}]]})))
    ((found,),) = await client.search(["x"], 1)
    assert (found.id, found.title, found.text) == hit


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("", "not of the /retrieve protocol"),
        ("<html>", "not of the /retrieve protocol"),
        ("[" * 5000, "not of the /retrieve protocol"),
        (b"\xff\xfe", "not of the /retrieve protocol"),
        ('{"result": [[{"document": {"id": "1"}}]]}', "neither `contents` nor `text`"),
        ('{"result": [[{"score": 1.0}]]}', "missing required field `document`"),
        ('{"result": [[], []]}', "2 answers to 1 queries"),
        ('{"result": []}', "0 answers to 1 queries"),
    ],
)
async def test_garbage_is_unavailability(serve, body, reason):
    client = await serve(says(body))
    with pytest.raises(ToolUnavailable, match=reason):
        await client.search(["x"], 1)


@pytest.mark.parametrize(
    ("status", "headers", "kind", "after"),
    [
        (503, {"Retry-After": "7"}, ToolUnavailable, 7.0),
        (429, {"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}, ToolUnavailable, None),
        (500, {}, ToolUnavailable, None),
        (202, {}, ToolError, None),
        (302, {"Location": "http://127.0.0.1:9/"}, ToolError, None),
        (401, {}, ToolError, None),
        (404, {}, ToolError, None),
    ],
)
async def test_refusals_are_typed(serve, status, headers, kind, after):
    client = await serve(says("what it says", status=status, headers=headers))
    with pytest.raises(ToolError, match=f"status {status}: what it says") as caught:
        await client.search(["x"], 1)
    assert type(caught.value) is kind
    assert getattr(caught.value, "retry_after_s", None) == after


async def test_too_much_is_not_read(serve, monkeypatch):
    monkeypatch.setattr(remote, "MAX_REPLY_BYTES", 1000)
    client = await serve(says(b"x" * 100_000))
    with pytest.raises(ToolUnavailable, match="more than 1000 bytes"):
        await client.search(["x"], 1)


async def test_a_server_that_drips_or_hangs_is_given_up(serve):
    left = []

    async def drip(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                await response.write(b" ")
                await asyncio.sleep(0.01)
        finally:
            left.append(True)

    client = await serve(drip, timeout_s=0.2)
    with pytest.raises(ToolUnavailable, match=r"no answer within 0\.2 s"):
        await client.search(["x"], 1)
    await until(lambda: left)


async def test_nobody_there():
    client = HttpRetriever("http://127.0.0.1:9", timeout_s=5.0)
    with pytest.raises(ToolUnavailable, match=r"http://127\.0\.0\.1:9/retrieve: "):
        await client.search(["x"], 1)
    await client.aclose()


async def test_cancelling_ends_the_request(serve):
    began, ended = [], []

    async def hang(_: web.Request) -> web.Response:
        began.append(True)
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(True)
        return web.Response()

    client = await serve(hang)
    task = asyncio.create_task(client.search(["x"], 1))
    await until(lambda: began)
    task.cancel()
    await until(lambda: ended)
    assert task.cancelled()


def test_addresses_are_checked_and_completed():
    for url in ("http://h:1", "http://h:1/", "http://h:1/retrieve"):
        assert HttpRetriever(url).url == "http://h:1/retrieve"
    assert HttpRetriever("https://h/api/v1").url == "https://h/api/v1/retrieve"
    for url in ("ftp://h", "h:80", "http://", "http://[", "http://h:99999999"):
        with pytest.raises(ConfigError, match="is not an address"):
            HttpRetriever(url)


def test_the_fingerprint_is_the_address_unless_said():
    assert HttpRetriever("http://h").fingerprint == HttpRetriever("http://h/retrieve").fingerprint
    assert HttpRetriever("http://h").fingerprint != HttpRetriever("http://g").fingerprint
    assert HttpRetriever("http://h", fingerprint="wiki-18").fingerprint == "wiki-18"


def test_documents_are_written_for_both_kinds_of_clients():
    document = as_document(Hit(id="7", title="T", text="a\nb", score=1.0))
    assert document == {"id": "7", "contents": '"T"\na\nb', "title": "T", "text": "a\nb"}
    assert as_document(Hit(id="7", title="", text="a\nb", score=1.0))["contents"] == "a\nb"
