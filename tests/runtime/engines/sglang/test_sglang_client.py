from __future__ import annotations

import asyncio

import pytest
from raw_server import listening, take_request

from icrl.errors import ConfigError, EngineError
from icrl.runtime.engines.sglang.client import BrokenReply, Client
from icrl.runtime.engines.sglang.refusal import LONGEST, retryable, said
from icrl.testing import SGLangStub

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


async def collect(client: Client, pieces: list[bytes]) -> None:
    async with client.stream("/x", b"{}", stall_s=5) as reply:
        async for piece in reply:
            pieces.append(piece)


async def test_a_reply_is_bytes_and_a_request_is_json() -> None:
    seen = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await take_request(reader))
        writer.write(OK)
        writer.close()

    async with listening(handler) as address:
        client = Client(address + "/", api_key="secret")
        assert client.address == address
        assert await client.post("/x", {"a": 1}, timeout_s=5) == b"ok"
        await client.aclose()
    assert b"POST /x HTTP/1.1" in seen[0]
    assert b"Authorization: Bearer secret" in seen[0]
    assert seen[0].endswith(b'{"a":1}')


@pytest.mark.parametrize("address", ["127.0.0.1:30000", "localhost", "ftp://host"])
def test_an_address_needs_a_scheme(address: str) -> None:
    with pytest.raises(ConfigError, match="needs a scheme"):
        Client(address)


async def test_a_post_that_dies_on_a_used_connection_is_sent_once_more_on_a_fresh_one() -> None:
    connections: list[int] = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(0)
        await take_request(reader)
        writer.write(OK)
        await take_request(reader)
        connections[-1] += 1
        writer.close()

    async with listening(handler) as address:
        client = Client(address)
        assert await client.post("/x", timeout_s=5) == b"ok"
        assert await client.post("/x", timeout_s=5) == b"ok"
        await client.aclose()
    assert connections == [1, 0]


async def test_a_post_that_dies_on_a_fresh_connection_is_not_sent_again() -> None:
    count = 0

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        await take_request(reader)
        count += 1
        writer.close()

    async with listening(handler) as address:
        client = Client(address)
        with pytest.raises(BrokenReply, match="the connection broke") as caught:
            await client.post("/x", timeout_s=5)
        await client.aclose()
    assert (count, caught.value.retryable) == (1, True)


async def test_a_reply_that_breaks_off_is_not_asked_for_again() -> None:
    count = 0

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        for _ in range(2):
            await take_request(reader)
            count += 1
            writer.write(OK if count == 1 else OK[:-1])
        writer.close()

    async with listening(handler) as address:
        client = Client(address)
        await client.post("/x", timeout_s=5)
        with pytest.raises(BrokenReply):
            await client.post("/x", timeout_s=5)
        await client.aclose()
    assert count == 2


async def test_silence_ends_at_the_deadline() -> None:
    over = asyncio.Event()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await over.wait()
        writer.close()

    async with listening(handler) as address:
        client = Client(address)
        with pytest.raises(BrokenReply, match="no answer in time"):
            await client.post("/x", timeout_s=0.05)
        with pytest.raises(BrokenReply, match="no answer in time"):
            async with client.stream("/x", b"{}", stall_s=0.05):
                pass
        over.set()
        await client.aclose()


async def test_a_server_that_is_not_there_is_worth_another_try() -> None:
    async with listening(lambda reader, writer: asyncio.sleep(0)) as address:
        pass
    client = Client(address)
    with pytest.raises(EngineError, match="cannot be reached") as caught:
        await client.get("/x", timeout_s=5)
    await client.aclose()
    assert caught.value.retryable
    assert not isinstance(caught.value, BrokenReply)


async def test_a_closed_client_says_so() -> None:
    client = Client("http://127.0.0.1:1")
    await client.aclose()
    with pytest.raises(EngineError, match="is closed"):
        await client.get("/x", timeout_s=5)


async def test_more_than_a_hundred_requests_are_under_way_at_once() -> None:
    waiting, all_there = 0, asyncio.Event()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal waiting
        await take_request(reader)
        waiting += 1
        if waiting == 150:
            all_there.set()
        await all_there.wait()
        writer.write(OK)
        writer.close()

    async with listening(handler) as address:
        client = Client(address)
        replies = await asyncio.gather(*(client.post("/x", timeout_s=10) for _ in range(150)))
        await client.aclose()
    assert replies == [b"ok"] * 150


async def test_a_stream_is_handed_out_in_pieces_until_it_breaks() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await take_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
        await writer.drain()
        writer.close()

    async with listening(handler) as address:
        client = Client(address)
        pieces: list[bytes] = []
        with pytest.raises(BrokenReply):
            await collect(client, pieces)
        await client.aclose()
    assert b"".join(pieces) == b"abc"


async def test_the_server_is_quoted_when_it_refuses() -> None:
    async with SGLangStub(["x"], api_key="secret") as stub:
        client = Client(stub.address)
        with pytest.raises(EngineError, match="Unauthorized") as caught:
            await client.get("/server_info", timeout_s=5)
        await client.aclose()
    assert (caught.value.status, caught.value.retryable, caught.value.engine) == (401, False, stub.address)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"error": {"message": "too long"}}', "too long"),
        (b'{"error": "unknown field `bogus`"}', "unknown field `bogus`"),
        (b'{"object": "error", "message": "1 validation error"}', "1 validation error"),
        (b'{"detail": "Not Found"}', "Not Found"),
        (b'{"error": {"code": 7}}', '{"code":7}'),
        (b"<html>", "<html>"),
        (b"", "an empty reply"),
        (b"\xff", "\ufffd"),
        (b"[1]", "[1]"),
    ],
)
def test_every_shape_of_refusal_is_understood(body: bytes, message: str) -> None:
    assert said(body) == message


def test_a_long_message_is_cut() -> None:
    assert said(b"x" * 10_000) == "x" * LONGEST + "…"


def test_which_refusals_may_pass() -> None:
    assert [status for status in (400, 401, 404, 422, 429, 500, 502, 503) if retryable(status)] == [429, 500, 502, 503]
