"""Bounds on connections: slow heads, slow bodies, slow readers, too many, and what is no HTTP."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from hostile import ROUTES, post
from listening import listening
from watched import until

from icrl.serve.config import AdmissionConfig
from icrl.serve.connection import Door

BIG = 16_000_000
HEAD = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"


def bounds(**fields: float) -> AdmissionConfig:
    return AdmissionConfig(**fields)


async def closed_after(reader: asyncio.StreamReader) -> float:
    started = time.monotonic()
    async with asyncio.timeout(5.0):
        try:
            while await reader.read(65_536):
                pass
        except ConnectionError:
            pass
    return time.monotonic() - started


async def test_a_head_that_is_sent_bit_by_bit_is_cut_off():
    async with listening(admission=bounds(header_timeout_s=0.2)) as server:
        reader, writer = await server.connect()

        async def drip():
            for byte in HEAD * 20:
                writer.write(bytes([byte]))
                await asyncio.sleep(0.02)

        dripping = asyncio.create_task(drip())
        assert 0.15 < await closed_after(reader) < 2.0
        dripping.cancel()
        await asyncio.gather(dripping, return_exceptions=True)


async def test_a_connection_that_says_nothing_is_cut_off():
    async with listening(admission=bounds(header_timeout_s=0.2)) as server:
        reader, _writer = await server.connect()
        assert 0.15 < await closed_after(reader) < 2.0


async def test_a_connection_that_asked_in_time_stays_open():
    async with listening(admission=bounds(header_timeout_s=0.2)) as server:
        reader, writer = await server.connect()
        for pause_s in (0.0, 0.4, 0.0):
            await asyncio.sleep(pause_s)
            writer.write(HEAD + b"\r\n")
            answer = await reader.readuntil(b"}")
            assert b"200 OK" in answer


async def test_a_body_that_does_not_come_is_answered_with_408():
    async with listening(admission=bounds(header_timeout_s=0.2)) as server:
        reader, writer = await server.connect()
        writer.write(post("/v1/responses", b'{"input"', length=100))
        answer = await reader.readuntil(b"}}")
        assert answer.startswith(b"HTTP/1.1 408")
        assert b'"code":"request_timeout"' in answer


@asynccontextmanager
async def big_answers(write_timeout_s: float):
    """Serve answers that no system's buffers hold, and yield a connection that asked for one."""

    async def answer(request: web.Request) -> web.Response:
        return web.Response(body=bytes(BIG))

    app = web.Application()
    app.router.add_get("/", answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    door = Door(runner, bounds(write_timeout_s=write_timeout_s), keepalive_s=1.0)
    server = await asyncio.get_running_loop().create_server(door, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    try:
        writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        yield reader, writer
    finally:
        writer.close()
        await asyncio.gather(writer.wait_closed(), return_exceptions=True)
        server.close()
        await runner.cleanup()


async def test_who_does_not_read_an_answer_is_cut_off(caplog):
    caplog.set_level(logging.INFO, "icrl.serve")
    async with big_answers(write_timeout_s=0.2) as (reader, writer):
        writer.transport.pause_reading()
        await until(lambda: "does not read" in caplog.text)
        writer.transport.resume_reading()
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(BIG)


async def test_who_reads_slowly_gets_everything():
    async with big_answers(write_timeout_s=0.2) as (reader, _):
        await reader.readuntil(b"\r\n\r\n")
        for _ in range(8):
            await reader.readexactly(BIG // 8)
            await asyncio.sleep(0.05)


async def test_more_connections_than_there_is_room_for_are_turned_away():
    async with listening(admission=bounds(max_connections=2)) as server:
        held = [await server.connect() for _ in range(2)]
        for _, writer in held:
            writer.write(HEAD)
        await asyncio.sleep(0.05)
        answer = await server.exchange(HEAD + b"\r\n")
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"Retry-After: 1" in answer
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "too_many_connections"
        held[0][1].close()
        await asyncio.sleep(0.05)
        assert b"200 OK" in await server.exchange(HEAD + b"Connection: close\r\n\r\n")


@pytest.mark.parametrize(
    "raw",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",
        HEAD + b"Authorization: Bearer secret-\x00key\r\n\r\n",
        HEAD + b"A: " + b"b" * 20_000 + b"\r\n\r\n",
        HEAD + b"A: b\r\n" * 400 + b"\r\n",
        b"GET /" + b"a" * 10_000 + b" HTTP/1.1\r\n\r\n",
    ],
)
async def test_what_is_no_http_is_answered_in_the_protocols_words_and_not_logged(raw, caplog):
    caplog.set_level(logging.INFO)
    async with listening() as server:
        answer = await server.exchange(raw)
    assert re.match(rb"HTTP/1.[01] 400 ", answer)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert json.loads(body)["error"]["code"] == "invalid_http"
    assert b"aiohttp" not in head
    assert b"secret" not in answer
    assert caplog.records == []


@pytest.mark.parametrize(
    "framing",
    [
        "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "Content-Length: 2\r\nContent-Length: 40\r\n\r\n{}",
        "Transfer-Encoding: chunked\r\n\r\nZZ\r\n{}\r\n0\r\n\r\n",
        "Content-Length: -1\r\n\r\n{}",
        "Content-Length : 2\r\n\r\n{}",
        "Transfer-Encoding: xchunked\r\n\r\n{}",
    ],
)
async def test_two_ways_to_read_a_request_are_none(framing):
    smuggled = "POST /admin/reload HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"
    start = "POST /v1/responses HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    async with listening() as server:
        reader, writer = await server.connect()
        writer.write((start + framing + smuggled).encode())
        async with asyncio.timeout(5.0):
            answer = await reader.read()
        assert re.match(rb"HTTP/1.[01] 400 ", answer)
        assert answer.count(b"HTTP/1.") == 1
        assert server.server.service.reloads == 0


async def test_a_packed_body_is_not_unpacked():
    async with listening() as server:
        raw = post("/v1/responses", b"\x78\x9c" * 100, "Content-Encoding: deflate")
        answer = await server.exchange(raw)
    assert answer.startswith(b"HTTP/1.1 415 ")
    assert b"Content-Encoding: must be identity" in answer


async def test_a_body_beyond_the_limit_is_refused_however_it_is_sent():
    async with listening(admission=bounds(max_body_bytes=1000)) as server:
        body = b'{"input":"' + b"x" * 2000 + b'"}'
        assert (await server.exchange(post("/v1/responses", body))).startswith(b"HTTP/1.1 413 ")
        head = b"POST /v1/responses HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        chunk = b"%x\r\n%s\r\n" % (len(body), body)
        chunked = head + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk + b"0\r\n\r\n"
        answer = await server.exchange(chunked)
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert b'"code":"body_too_large"' in answer


async def test_every_route_takes_its_valid_body():
    async with listening() as server:
        for path, body in ROUTES.items():
            answer = await server.exchange(post(path, json.dumps(body).encode()))
            assert answer.startswith(b"HTTP/1.1 200 "), answer
