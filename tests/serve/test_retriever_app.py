from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from io import BytesIO
from typing import Any

import pytest
from aiohttp import ClientSession, web

from icrl.errors import ToolUnavailable
from icrl.runtime.tools.corpus import Hit
from icrl.runtime.tools.retrievers.remote import HttpRetriever
from icrl.serve import retriever as module
from icrl.serve.access import Keys
from icrl.serve.retriever import build_retriever_app


class Source:
    """Finds whatever is asked for."""

    fingerprint = "corpus-1"

    def __init__(self) -> None:
        self.hold: asyncio.Event | None = None
        self.asked: list[tuple[list[str], int]] = []

    async def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        self.asked.append((list(queries), k))
        if self.hold:
            await self.hold.wait()
        if "broken" in queries:
            raise OSError("secret path")
        if "away" in queries:
            raise ToolUnavailable("secret reason", retry_after_s=4)
        return [[Hit(id=str(i), title=q, text="a\nb", score=1.5 - i) for i in range(k)] for q in queries]


@pytest.fixture
def source() -> Source:
    return Source()


@pytest.fixture
async def address(source, request) -> AsyncIterator[str]:
    options: dict[str, Any] = {"keys": Keys([]), **getattr(request, "param", {})}
    runner = web.AppRunner(build_retriever_app(source, **options), handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    yield f"http://{host}:{port}"
    await runner.cleanup()


async def post(address: str, data: bytes | BytesIO | None = None, headers: dict[str, str] | None = None, **body: Any):
    sent = {"data": data} if data is not None else {"json": body}
    async with ClientSession() as session, session.post(f"{address}/retrieve", headers=headers, **sent) as answer:
        return answer.status, await answer.json(), answer.headers


async def test_our_client_gets_exactly_what_was_found(address, source):
    client = HttpRetriever(address)
    queries = ["Rikor", "Größe\n", ""]
    assert await client.search(queries, 4) == await source.search(queries, 4)
    await client.aclose()


async def test_a_large_request_arrives(address):
    client = HttpRetriever(address)
    assert len(await client.search(["x" * 15_000] * 100, 1)) == 100
    await client.aclose()


async def test_other_clients_get_what_search_r1_gives(address, source):
    _, answer, _ = await post(address, queries=["q"], topk=1, return_scores=True)
    document = {"id": "0", "contents": '"q"\na\nb', "title": "q", "text": "a\nb"}
    assert answer == {"result": [[{"document": document, "score": 1.5}]]}
    _, answer, _ = await post(address, queries=["q"])
    assert answer["result"][0][0] == document
    assert source.asked[-1] == (["q"], 3)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({}, "queries"),
        ({"queries": []}, "`queries`: from 1 to 1024, not 0"),
        ({"queries": ["x"] * 1025}, "`queries`: from 1 to 1024"),
        ({"queries": ["x" * 20_001]}, "characters at most"),
        ({"queries": "x"}, "Expected `array`"),
        ({"queries": [1]}, "Expected `str`"),
        ({"queries": ["x"], "topk": 0}, "`topk`: from 1 to 1000, not 0"),
        ({"queries": ["x"], "topk": 1001}, "`topk`: from 1 to 1000"),
        ({"queries": ["x"], "topk": 1.5}, "Expected `int"),
    ],
)
async def test_wrong_requests_are_explained(address, source, body, reason):
    status, answer, _ = await post(address, **body)
    assert (status, reason in answer["error"]["message"]) == (400, True), answer
    assert source.asked == []


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b"[" * 3000])
async def test_garbage_is_a_bad_request(address, data):
    status, answer, _ = await post(address, data=data)
    assert status == 400
    assert "not a request" in answer["error"]["message"]


async def test_a_body_is_bounded(address):
    status, answer, _ = await post(address, data=BytesIO(b"x" * (module.MAX_BODY_BYTES + 1)))
    assert status == 413
    assert "error" in answer


async def test_other_paths_and_methods_are_json_too(address):
    async with ClientSession() as session:
        for method, path, status in (("GET", "/retrieve", 405), ("GET", "/", 404), ("DELETE", "/health", 405)):
            async with session.request(method, address + path) as answer:
                assert (answer.status, "error" in await answer.json()) == (status, True)
        async with session.get(f"{address}/health") as answer:
            assert await answer.json() == {"status": "ok", "fingerprint": "corpus-1"}


@pytest.mark.parametrize("address", [{"keys": Keys(["right"])}], indirect=True)
async def test_a_key_is_asked_for(address, source):
    for headers in (None, {"Authorization": "Bearer wrong"}, {"Authorization": "right"}):
        assert (await post(address, headers=headers, queries=["x"]))[0] == 401
    assert source.asked == []
    client = HttpRetriever(address, api_key="right")
    assert len(await client.search(["x"], 1)) == 1
    await client.aclose()


async def test_what_goes_wrong_inside_stays_there(address):
    status, answer, headers = await post(address, queries=["away"])
    assert (status, headers["Retry-After"]) == (503, "4")
    assert "secret" not in str(answer)
    status, answer, _ = await post(address, queries=["broken"])
    assert (status, "secret" in str(answer)) == (500, False)


@pytest.mark.parametrize("address", [{"max_running": 1, "timeout_s": 0.3}], indirect=True)
async def test_a_server_at_its_limits_says_so_at_once(address, source):
    source.hold = asyncio.Event()
    first = asyncio.create_task(post(address, queries=["x"]))
    while not source.asked:  # noqa: ASYNC110 - the source sets no event
        await asyncio.sleep(0.001)
    status, _, headers = await post(address, queries=["y"])
    assert (status, headers["Retry-After"]) == (503, "1")
    assert (await first)[0] == 503  # timed out
    source.hold.set()
    assert (await post(address, queries=["z"]))[0] == 200
