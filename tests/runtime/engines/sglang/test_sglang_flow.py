from __future__ import annotations

import asyncio
import gc
import math
import tracemalloc
import weakref
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

import pytest
from raw_server import CHUNKED, ENDLESS, MEBI, OK, Server, asked, streamed, take_request

from icrl.errors import EngineError
from icrl.runtime.engines.sglang import connection, connections
from icrl.runtime.engines.sglang.client import BrokenReply, Client


@pytest.mark.parametrize("closes", [False, True])
async def test_a_refusal_ends_an_upload(closes: bool) -> None:
    ended = asyncio.Event()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 9\r\n\r\ntoo large")
        await writer.drain()
        with suppress(ConnectionError):
            while not closes and await reader.read(4096):
                pass
        writer.close()
        ended.set()

    async with asked(handler) as client:
        with pytest.raises(EngineError, match="too large") as caught:
            await client.post("/x", bytes(256 * MEBI), timeout_s=20)
        assert caught.value.status == 413
        await asyncio.wait_for(ended.wait(), 5)


async def test_nothing_more_is_sent_to_a_server_that_has_refused() -> None:
    got = 0

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal got
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 9\r\n\r\ntoo ")
        await asyncio.sleep(0.05)
        with suppress(TimeoutError):
            while got < 256 * MEBI:
                got += len(await asyncio.wait_for(reader.read(MEBI), 0.2))
        writer.write(b"large")
        await reader.read()

    async with asked(handler) as client:
        with pytest.raises(EngineError, match="too large"):
            await client.post("/x", bytes(256 * MEBI), timeout_s=20)
    assert got < 64 * MEBI


class Sink:
    """A transport that takes everything at once."""

    def __init__(self) -> None:
        self.written = self.left = 0

    def write(self, data: bytes) -> None:
        self.written += len(data)

    def get_write_buffer_size(self) -> int:
        return self.left

    def is_closing(self) -> bool:
        return False

    def abort(self) -> None:
        pass


async def test_a_server_that_takes_everything_does_not_take_the_loop() -> None:
    sink, written = Sink(), []
    opened = connection.Connection(asyncio.get_running_loop(), lambda lost: None)
    opened.connection_made(sink)
    asking = asyncio.create_task(opened.ask(b"", bytes(4 * MEBI), streamed=False))
    while sink.written < 4 * MEBI:
        await asyncio.sleep(0)
        written.append(sink.written)
    assert len(written) >= 4 * MEBI / connection.SLICE_BYTES
    opened.data_received(OK)
    await asking
    assert opened.reusable
    sink.left = 1
    assert not opened.reusable


async def test_a_connection_with_half_a_request_is_not_used_again() -> None:
    sink = Sink()
    opened = connection.Connection(asyncio.get_running_loop(), lambda lost: None)
    opened.connection_made(sink)
    asking = asyncio.create_task(opened.ask(b"", bytes(4 * MEBI), streamed=False))
    await asyncio.sleep(0)
    opened.data_received(OK)
    await asking
    assert 0 < sink.written < 4 * MEBI
    assert await opened.read() == b"ok"
    assert not opened.reusable


async def test_a_connection_that_has_ended_is_not_written_to() -> None:
    sink = Sink()
    opened = connection.Connection(asyncio.get_running_loop(), lambda lost: None)
    opened.connection_made(sink)
    opened.connection_lost(None)
    with pytest.raises(connection.Unanswered):  # uvloop's transports raise a RuntimeError
        await opened.ask(b"GET / HTTP/1.1\r\n\r\n", b"", until=math.inf, streamed=False)
    assert sink.written == 0


async def test_what_a_request_that_failed_had_sent_is_free_without_a_collection() -> None:
    opened = connection.Connection(asyncio.get_running_loop(), lambda lost: None)
    opened.connection_made(Sink())
    asking = asyncio.create_task(opened.ask(b"", bytes(MEBI), streamed=False))
    await asyncio.sleep(0)
    opened.fail(ConnectionAbortedError("closed"))
    opened.connection_lost(None)
    gc.disable()
    try:
        with suppress(ConnectionAbortedError):
            await asking
        left = weakref.ref(opened)
        del opened, asking
        await asyncio.sleep(0)  # the loop holds the task while it wakes this one
        assert left() is None
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("reply", "error"), [(b"", "without a reply"), (b"HTTP/1.1 413 Too Large\r\n\r\ntoo large", "too large")]
)
async def test_a_server_that_sends_no_more_and_takes_no_more_ends_an_upload(reply: bytes, error: str) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await asyncio.sleep(0.05)  # the upload fills what is between
        writer.write(reply)
        writer.write_eof()
        await asyncio.sleep(60)

    async with asked(handler) as client:
        with pytest.raises(EngineError, match=error):
            await client.post("/x", bytes(64 * MEBI), timeout_s=5)


async def test_an_early_reply_ends_an_upload_and_the_connection() -> None:
    count = 0

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        count += 1
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK)
        await asyncio.sleep(0.5)
        writer.close()

    async with asked(handler) as client:
        for _ in range(2):
            assert await client.post("/x", bytes(32 * MEBI), timeout_s=20) == b"ok"
    assert count == 2


async def test_large_bodies_leave_the_loop_and_the_memory_alone() -> None:
    ticks = got = 0

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal got
        await reader.readuntil(b"\r\n\r\n")
        while got < 64 * MEBI:
            got += len(await reader.read(MEBI))
        writer.write(OK)
        writer.close()

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0)

    body = bytes(64 * MEBI)
    async with asked(handler) as client:
        ticking = asyncio.create_task(tick())
        tracemalloc.start()
        assert await client.post("/x", body, timeout_s=60) == b"ok"
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        ticking.cancel()
    assert got == len(body)
    assert peak < 4 * MEBI
    assert ticks > len(body) / connection.SLICE_BYTES


async def test_a_body_arrives_as_it_was_sent() -> None:
    body = b"".join(i.to_bytes(4, "big") for i in range(MEBI))
    server = Server(OK)
    async with asked(server) as client:
        await client.post("/x", body, timeout_s=20)
    assert server.requests[0][0].endswith(b"\r\nContent-Length: %d\r\n\r\n" % len(body) + body)


async def test_a_reply_that_nobody_reads_is_not_received() -> None:
    sent, total = 0, 64 * MEBI

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await take_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % total)
        for _ in range(64):
            writer.write(bytes(MEBI))
            await writer.drain()
            sent += MEBI
        writer.close()

    async with asked(handler) as client, client.stream("/x", b"{}", stall_s=1.0) as reply:
        before = -1
        while before < sent:
            before = sent
            await asyncio.sleep(1.2)  # longer than a stall, which this is none of
        assert sent < total / 2
        assert sum([len(piece) async for piece in reply]) == total


async def test_bytes_that_trickle_are_no_stall_but_end_with_the_time() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await take_request(reader)
        with suppress(ConnectionError):
            for byte in OK[:-1]:
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(0.01)
            await reader.read()
        writer.close()

    async with asked(handler) as client:
        with pytest.raises(BrokenReply, match=r"no answer in time: nothing for 0.3 s"):
            await streamed(client, stall_s=0.3)
        with pytest.raises(BrokenReply, match="no answer in time: the time for it is over"):
            await asyncio.wait_for(streamed(client, timeout_s=0.1, stall_s=60), 5)
        with pytest.raises(BrokenReply, match="no answer in time: the time for it is over"):
            await client.get("/x", timeout_s=0.1)


@pytest.mark.parametrize("patience", [{"timeout_s": 0.2}, {"stall_s": 0.2}])
async def test_an_upload_that_is_not_taken_ends(patience: dict[str, float]) -> None:
    ended = asyncio.Event()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.pause_reading()
        await ended.wait()
        writer.close()

    async with asked(handler) as client:
        with pytest.raises(BrokenReply, match="no answer in time"):
            await streamed(client, bytes(64 * MEBI), **patience)
        ended.set()


async def test_a_server_that_takes_no_connection_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    async def create_connection(*args: object, **kwargs: object) -> None:
        await asyncio.sleep(60)

    monkeypatch.setattr(asyncio.get_running_loop(), "create_connection", create_connection)
    for limit, timeout_s in ((0.05, 60), (60, 0.05)):
        monkeypatch.setattr(connections, "CONNECT_S", limit)
        with pytest.raises(EngineError, match="cannot be reached: no connection in time") as caught:
            await Client("http://127.0.0.1:1").get("/x", timeout_s=timeout_s)
        assert caught.value.retryable
        assert not isinstance(caught.value, BrokenReply)
    client = Client("http://127.0.0.1:1")
    request = asyncio.create_task(client.get("/x", timeout_s=60))
    monkeypatch.setattr(connections, "CONNECT_S", 60)
    await asyncio.sleep(0)
    await client.aclose()
    with pytest.raises(EngineError, match="is closed"):
        await asyncio.wait_for(request, 5)


REQUESTS: dict[str, Callable[[Client], Coroutine[Any, Any, object]]] = {
    "whole": lambda client: client.post("/x", timeout_s=60),
    "streamed": lambda client: streamed(client, stall_s=60),
    "upload": lambda client: client.post("/x", bytes(64 * MEBI), timeout_s=60),
}


@pytest.mark.parametrize("how", ["cancelled", "closed"])
@pytest.mark.parametrize("kind", REQUESTS)
async def test_a_request_that_is_given_up_ends_at_the_server_at_once(kind: str, how: str) -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        if kind == "streamed":
            writer.write(CHUNKED + b"1\r\nx\r\n")
        if kind == "upload":
            await asyncio.sleep(0.05)  # it fills what is between
        begun.set()
        with suppress(ConnectionError):
            while await reader.read(4096):
                pass
        ended.set()
        writer.close()

    async with asked(handler) as client:
        request = asyncio.create_task(REQUESTS[kind](client))
        await asyncio.wait_for(begun.wait(), 5)
        if how == "closed":
            await client.aclose()
            with pytest.raises(BrokenReply, match="the client was closed"):
                await request
        else:
            request.cancel()
            with pytest.raises(asyncio.CancelledError):
                await request
        await asyncio.wait_for(ended.wait(), 5)


def test_other_loops_will_do() -> None:
    uvloop = pytest.importorskip("uvloop")

    async def run() -> None:
        chunked = CHUNKED + b"2\r\nok\r\n0\r\n\r\n"
        server = Server(OK, OK, chunked, ENDLESS + b"x")
        async with asked(server) as client:
            assert await client.post("/x", timeout_s=5) == b"ok"
            assert await client.post("/x", bytes(32 * MEBI), timeout_s=20) == b"ok"
            assert await streamed(client, stall_s=5) == b"ok"
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(streamed(client), 0.1)
            await asyncio.wait_for(server.ended.wait(), 5)
            assert [len(requests) for requests in server.requests] == [4]
        for kind in REQUESTS:
            await test_a_request_that_is_given_up_ends_at_the_server_at_once(kind, "cancelled")

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())
