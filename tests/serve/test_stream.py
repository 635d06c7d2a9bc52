"""Streams: order, batches, heartbeats, and what becomes of them when something breaks."""

from __future__ import annotations

import asyncio
import logging

import pytest
from aiohttp import ClientError, web
from aiohttp.test_utils import TestClient, TestServer
from hypothesis import given
from hypothesis import strategies as st
from served import events_of, sent
from watched import until

from icrl.serve.config import AdmissionConfig, ServeConfig
from icrl.serve.keys import CONFIG, REQUEST_ID
from icrl.serve.stream import HEARTBEAT, Mailbox, encode_event, send


async def test_a_mailbox_gives_everything_that_waits_at_once():
    box: Mailbox[int] = Mailbox()
    reader = box.batches(heartbeat_s=60.0)
    for number in range(3):
        box.put(number)
    assert await anext(reader) == [0, 1, 2]
    waiting = asyncio.ensure_future(anext(reader))
    await asyncio.sleep(0)
    box.put(3)
    box.put(4)
    assert await waiting == [3, 4]
    box.put(5)
    box.close()
    assert [batch async for batch in reader] == [[5]]


async def test_silence_is_an_empty_batch():
    box: Mailbox[int] = Mailbox()
    reader = box.batches(heartbeat_s=0.01)
    assert [await anext(reader), await anext(reader)] == [[], []]
    box.put(1)
    assert await anext(reader) == [1]
    box.close()
    with pytest.raises(StopAsyncIteration):
        await anext(reader)


async def test_a_reader_that_leaves_leaves_nothing():
    box: Mailbox[int] = Mailbox()
    waiting = asyncio.ensure_future(anext(box.batches(heartbeat_s=60.0)))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    box.put(1)
    box.close()
    assert [batch async for batch in box.batches(heartbeat_s=60.0)] == [[1]]


@given(bursts=st.lists(st.lists(st.integers(), max_size=4), max_size=8))
def test_order_is_kept(bursts):
    async def read():
        box: Mailbox[int] = Mailbox()

        async def write():
            for burst in bursts:
                for item in burst:
                    box.put(item)
                await asyncio.sleep(0)
            box.close()

        writing = asyncio.ensure_future(write())
        got = [item async for batch in box.batches(heartbeat_s=60.0) for item in batch]
        await writing
        return got

    assert asyncio.run(read()) == [item for burst in bursts for item in burst]


@pytest.fixture
async def streaming():
    """Serve a stream of a test's own; returns a client."""
    clients = []

    async def start(payloads, *, write_timeout_s=30.0):
        async def handle(request):
            request[REQUEST_ID] = "r1"
            try:
                return await send(request, payloads(), failed=lambda: encode_event({"failed": True}))
            finally:
                ended.set()

        ended = asyncio.Event()
        app = web.Application()
        app[CONFIG] = ServeConfig(admission=AdmissionConfig(write_timeout_s=write_timeout_s))
        app.router.add_get("/", handle)
        server = TestServer(app)
        await server.start_server(shutdown_timeout=0.1)
        clients.append(TestClient(server))
        return clients[-1], ended

    yield start
    for client in clients:
        await client.close()


async def test_a_stream_is_its_payloads_in_order(streaming):
    async def payloads():
        yield encode_event({"n": 0}) + encode_event({"n": 1}, event="named")
        yield HEARTBEAT
        yield b"data: [DONE]\n\n"

    client, _ = await streaming(payloads)
    response = await client.get("/")
    assert response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
    assert response.headers["X-Request-Id"] == "r1"
    assert [tuple(event) async for event in sent(response)] == [
        ("", {"n": 0}),
        ("named", {"n": 1}),
        ("", None),
        ("", "[DONE]"),
    ]


async def test_what_breaks_becomes_the_last_event(streaming, caplog):
    async def payloads():
        yield encode_event({"n": 0})
        raise RuntimeError("a secret")

    client, _ = await streaming(payloads)
    response = await client.get("/")
    assert [event.data for event in await events_of(response)] == [{"n": 0}, {"failed": True}]
    assert "a secret" in caplog.text, "the operator is told why"


async def test_a_client_that_left_is_no_failure(streaming, caplog):
    gone = asyncio.Event()

    async def payloads():
        yield encode_event({"n": 0})
        await gone.wait()
        for _ in range(100):
            yield encode_event({"n": 1})
            await asyncio.sleep(0)

    client, ended = await streaming(payloads)
    response = await client.get("/")
    await response.content.readline()
    response.close()
    gone.set()
    await asyncio.wait_for(ended.wait(), 5)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_a_reader_that_is_too_slow_is_cut_off(streaming, caplog):
    written = 0

    async def payloads():
        nonlocal written
        while True:
            yield encode_event({"text": "x" * 1_000_000})
            written += 1

    client, ended = await streaming(payloads, write_timeout_s=0.1)
    response = await client.get("/")
    await asyncio.wait_for(ended.wait(), 10)
    assert 0 < written < 100
    with pytest.raises(ClientError):
        await response.read()
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_payloads_are_closed_when_nobody_reads(streaming):
    closed = asyncio.Event()

    async def payloads():
        try:
            while True:
                yield encode_event({"n": 0})
                await asyncio.sleep(0)
        finally:
            closed.set()

    client, _ = await streaming(payloads)
    response = await client.get("/")
    await response.content.readline()
    response.close()
    await until(closed.is_set)
