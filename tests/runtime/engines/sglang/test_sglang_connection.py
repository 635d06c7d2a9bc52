from __future__ import annotations

import asyncio
import gc
import math
import queue
import socket
import ssl
import struct
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from raw_server import CHUNKED, ENDLESS, MEBI, OK, Server, asked, listening, streamed, take_request
from watched import until

from icrl.errors import EngineError
from icrl.runtime.engines.sglang import connection, connections
from icrl.runtime.engines.sglang.client import BrokenReply, Client
from icrl.runtime.engines.sglang.endpoint import Endpoint

# Self-signed, for localhost and 127.0.0.1, until 2120; nobody else trusts it.
CERTIFICATE = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgYNH+VkfxcuyJUtiA
wgxzaf0SXxpwA9tBH1BdSvmhC0yhRANCAASwtEeakAQZwolN666mYFI99zZX2TX3
h/E8xCKSwfyqzJU4e5uJNu34qIvqpZM2vKKQZBQcFsq1Zh7dbJ8NwY1V
-----END PRIVATE KEY-----
-----BEGIN CERTIFICATE-----
MIIBRzCB7qADAgECAgEBMAoGCCqGSM49BAMCMBQxEjAQBgNVBAMMCWxvY2FsaG9z
dDAgFw0yMDAxMDEwMDAwMDBaGA8yMTIwMDEwMTAwMDAwMFowFDESMBAGA1UEAwwJ
bG9jYWxob3N0MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEsLRHmpAEGcKJTeuu
pmBSPfc2V9k194fxPMQiksH8qsyVOHubiTbt+KiL6qWTNryikGQUHBbKtWYe3Wyf
DcGNVaMvMC0wGgYDVR0RBBMwEYIJbG9jYWxob3N0hwR/AAABMA8GA1UdEwEB/wQF
MAMBAf8wCgYIKoZIzj0EAwIDSAAwRQIhAOL3fPD1B4WliNm8Af84Ln7cUCveq+WC
3BC/MTReSHx5AiBE/jVSPbNwoaBJLQPSED2NHbsI0RkpSZxdqoA8LNkVOQ==
-----END CERTIFICATE-----
"""


BODIES = {
    "length": (OK, b"ok", True),
    "no body": (b"HTTP/1.1 204 No Content\r\n\r\n", b"", True),
    "chunked": (CHUNKED + b"2;note=1\r\nab\r\n1\r\nc\r\n0\r\nContent-Encoding: gzip\r\n\r\n", b"abc", True),
    "until the end": (ENDLESS + b"abc", b"abc", False),
    "interim": (
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nContent-Length: 9\r\nLink: x\r\n\r\n" + OK,
        b"ok",
        True,
    ),
    "interim, until the end": (b"HTTP/1.1 103 Hints\r\nContent-Length: 9\r\n\r\n" + ENDLESS + b"abc", b"abc", False),
    "last one": (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok", b"ok", False),
    "HTTP/1.0": (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", b"ok", False),
    "HTTP/1.0 until the end": (b"HTTP/1.0 200 OK\r\n\r\nok", b"ok", False),
    "HTTP/1.0, kept": (b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok", b"ok", True),
}


@pytest.mark.parametrize("drip", [False, True], ids=["at once", "byte by byte"])
@pytest.mark.parametrize("name", BODIES)
async def test_a_reply_ends_where_its_framing_says(name: str, drip: bool) -> None:
    reply, body, kept = BODIES[name]
    server = Server(reply, reply, reply, OK, drip=drip, close=name.endswith("end"))
    async with asked(server) as client:
        assert await client.post("/x", timeout_s=5) == body
        assert await streamed(client, stall_s=5) == body
        assert await client.get("/x", timeout_s=5) == body
        await client.post("/y", timeout_s=5)
    assert [len(requests) for requests in server.requests] == ([4] if kept else [1, 1, 1, 1])


@pytest.mark.parametrize("kind", ["whole", "streamed"])
@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (b"SSH-2.0-OpenSSH_9.6\r\n", "a malformed reply: Expected HTTP/"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok", "Content-Length"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", "Encoding"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\nok", "Content-Length"),
        (CHUNKED + b"zz\r\nok\r\n", "chunk size"),
        (b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n", "changes the protocol"),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n\x1f\x8b", "'gzip', which was not"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", "'gzip, chunked', which was not"),
        (b"HTTP/1.1 200 OK\r\nX: " + bytes(70_000).replace(b"\0", b"x"), "nothing of a body"),
        (CHUNKED + b"2\r\nok\r\n0\r\nX: " + bytes(400_000).replace(b"\0", b"x"), "nothing of a body"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 20_000, "nothing of a body"),
    ],
)
async def test_what_is_no_reply_is_said_to_be_none_and_not_asked_for_again(
    reply: bytes, message: str, kind: str
) -> None:
    server = Server(OK, reply, OK)
    async with asked(server) as client:
        await client.post("/x", timeout_s=5)
        with pytest.raises(BrokenReply, match=message):
            await (streamed(client, stall_s=5) if kind == "streamed" else client.post("/x", timeout_s=5))
        assert await client.post("/x", timeout_s=5) == b"ok"
    assert [len(requests) for requests in server.requests] == [2, 1]


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("surplus", [OK, b"x", b"HTTP/1.1 408 Request Timeout\r\n\r\n"])
async def test_bytes_after_a_reply_end_the_connection(surplus: bytes, late: bool) -> None:
    count = 0

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        count += 1
        await take_request(reader)
        writer.write(OK if late else OK + surplus)
        await asyncio.sleep(0.02)
        writer.write(surplus if late else b"")
        await reader.read()
        writer.close()

    async with asked(handler) as client:
        for _ in range(2):
            assert await client.post("/x", timeout_s=5) == b"ok"
            await until(lambda: not client._connections._idle)
    assert count == 2


@pytest.mark.parametrize("died", [b"", b"H", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Le"])
@pytest.mark.parametrize("how", ["close", "reset"])
async def test_only_a_request_without_one_byte_of_a_reply_is_sent_once_more(died: bytes, how: str) -> None:
    requests: list[bytes] = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(await take_request(reader))
        if len(requests) == 1:
            writer.write(OK)
            requests.append(await take_request(reader))
        writer.write(died)
        await asyncio.sleep(0.02)
        writer.transport.abort() if how == "reset" else writer.close()

    async with asked(handler) as client:
        await client.post("/x", timeout_s=5)
        with pytest.raises(BrokenReply, match="the connection broke"):
            await client.post("/x", b'{"n":2}', timeout_s=5)
    assert len(requests) == (2 if died else 3)
    assert died or requests[1] == requests[2]


async def test_a_connection_that_ends_before_it_is_asked_leaves_nobody_waiting() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    async with listening(handler) as address:
        those = connections.Connections(Endpoint(address))
        those.take(asyncio.get_running_loop())
        opened = await those.open(math.inf)
        await asyncio.sleep(0.05)
        with pytest.raises(connection.Unanswered):
            await asyncio.wait_for(opened.ask(b"GET / HTTP/1.1\r\n\r\n", b"", streamed=False), 5)
        await asyncio.wait_for(those.aclose(), 0.5)


async def test_a_reply_without_a_length_must_end_properly() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await take_request(reader)
        writer.write(ENDLESS + b"abc")
        await asyncio.sleep(0.05)
        linger = struct.pack("ii", 1, 0)  # ends by a reset
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        writer.transport.abort()

    async with asked(handler) as client:
        with pytest.raises(BrokenReply, match="the connection broke"):
            await client.get("/x", timeout_s=5)


async def test_who_speaks_first_speaks_no_http() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-OpenSSH_9.6\r\n")
        await reader.read()

    async with asked(handler) as client:
        for _ in range(5):
            with pytest.raises(BrokenReply, match=r"a malformed reply: (it came before|Expected HTTP)"):
                await client.get("/x", timeout_s=5)


async def test_idle_connections_are_dropped_before_the_server_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "KEEP_ALIVE_S", 0.1)
    server = Server(OK)
    async with asked(server) as client:
        await client.post("/x", timeout_s=5)
        await asyncio.wait_for(server.ended.wait(), 5)


async def test_a_connection_that_was_idle_for_too_long_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(OK, OK, OK)
    async with asked(server) as client:
        await client.post("/x", timeout_s=5)
        await client.post("/x", timeout_s=5)
        monkeypatch.setattr(connections, "KEEP_ALIVE_S", 0.0)
        await client.post("/x", timeout_s=5)
    assert [len(requests) for requests in server.requests] == [2, 1]


async def test_a_connection_of_an_earlier_loop_is_not_used_under_the_next() -> None:
    async with listening(Server(OK)) as address:
        those, loop, later = connections.Connections(Endpoint(address)), asyncio.get_running_loop(), Other()
        those.take(loop)
        opened = await those.open(math.inf)
        await opened.ask(b"GET / HTTP/1.1\r\n\r\n", b"", streamed=False)
        assert opened.reusable
        assert those.take(later) is None  # type: ignore[arg-type]
        those.give_back(opened)
        assert those.take(later) is None  # type: ignore[arg-type]


class Other:
    """Another loop than the one that runs."""

    time = staticmethod(time.monotonic)

    def call_later(self, *args: object) -> None:
        pass


async def test_of_a_name_s_addresses_one_that_leads_nowhere_costs_little(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    nowhere, never = ("127.0.0.2", 9), asyncio.Event()
    connect = loop.sock_connect

    async def sock_connect(sock: socket.socket, address: tuple[str, int]) -> None:
        await (never.wait() if address == nowhere else connect(sock, address))

    async with listening(Server(OK)) as address:
        port = int(address.rpartition(":")[2])

        async def getaddrinfo(*args: object, **settings: object) -> list[tuple[object, ...]]:
            there = [nowhere, ("127.0.0.1", port)]
            return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", to) for to in there]

        monkeypatch.setattr(loop, "sock_connect", sock_connect)
        monkeypatch.setattr(loop, "getaddrinfo", getaddrinfo)
        client = Client(address.replace("127.0.0.1", "localhost"))
        assert await client.get("/x", timeout_s=5) == b"ok"
        await client.aclose()


async def test_a_client_that_is_closed_while_it_connects_keeps_no_connection() -> None:
    async with asked(Server(OK)) as client:
        request = asyncio.create_task(client.post("/x", timeout_s=5))
        await asyncio.sleep(0)
        await client.aclose()
        with pytest.raises(EngineError, match="is closed"):
            await request


async def test_a_stream_that_is_left_early_frees_its_connection() -> None:
    server = Server(OK, CHUNKED + b"1\r\nx\r\n", OK)
    async with asked(server) as client:
        await client.post("/x", timeout_s=5)
        async with client.stream("/x", b"{}") as reply:
            assert await anext(reply) == b"x"
        await client.post("/x", timeout_s=5)
    assert [len(requests) for requests in server.requests] == [2, 1]


async def test_no_redirect_is_followed() -> None:
    moved = b"HTTP/1.1 307 Moved\r\nLocation: http://127.0.0.1:1/y\r\nContent-Length: 0\r\n\r\n"
    async with asked(Server(moved, moved)) as client:
        for ask in (client.get("/x", timeout_s=5), streamed(client, stall_s=5)):
            with pytest.raises(EngineError, match=r"leads to http://127.0.0.1:1/y") as caught:
                await ask
            assert (caught.value.status, caught.value.retryable) == (307, False)


async def test_a_server_may_have_a_certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "certificate.pem"
    path.write_text(CERTIFICATE)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    server = Server(OK, CHUNKED + b"2\r\nok\r\n0\r\n\r\n", OK)
    async with listening(server, ssl=context) as address:
        stranger = Client(address)
        with pytest.raises(EngineError, match=r"cannot be reached: .*certificate"):
            await stranger.get("/x", timeout_s=5)
        monkeypatch.setenv("SSL_CERT_FILE", str(path))
        client = Client(address.replace("127.0.0.1", "localhost"))
        assert await client.get("/x", timeout_s=5) == b"ok"
        assert await streamed(client, stall_s=5) == b"ok"
        assert await client.post("/x", bytes(8 * MEBI), timeout_s=20) == b"ok"
        await client.aclose()
    assert server.requests[-1][0].startswith(b"GET /x HTTP/1.1\r\nHost: localhost:")
    assert len(server.requests[-1]) == 3


async def test_the_address_may_be_ipv6_and_have_a_path() -> None:
    server = Server(OK)
    try:
        async with listening(server, host="::1") as address:
            client = Client(address + "/prefix/")
            assert await client.get("/x?y=1", timeout_s=5) == b"ok"
            await client.aclose()
    except OSError:
        pytest.skip("no IPv6 here")
    host = address.removeprefix("http://").encode()
    assert (
        server.requests[0][0] == b"GET /prefix/x?y=1 HTTP/1.1\r\nHost: %b\r\nAccept-Encoding: identity\r\n\r\n" % host
    )


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer by path."""
    with suppress(ConnectionError, asyncio.IncompleteReadError):
        while b" /last " not in (await take_request(reader))[:20]:
            writer.write(OK)
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 4\r\n\r\nlast")
    writer.close()


@pytest.fixture
def elsewhere() -> Iterator[str]:
    """The address of a server in a loop of its own, which outlives those of the test."""
    addresses: queue.Queue[str] = queue.Queue()
    loop, over = asyncio.new_event_loop(), asyncio.Event()

    async def serve() -> None:
        async with listening(answer) as address:
            addresses.put(address)
            await over.wait()
        await asyncio.sleep(0.05)  # for what is still open

    with ThreadPoolExecutor(1) as thread:
        serving = thread.submit(loop.run_until_complete, serve())
        yield addresses.get(timeout=10)
        loop.call_soon_threadsafe(over.set)
        serving.result(10)
    loop.close()


def test_a_client_may_be_used_under_one_loop_after_the_other(elsewhere: str) -> None:
    client = Client(elsewhere)
    assert asyncio.run(client.post("/x", timeout_s=5)) == b"ok"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # of the connection that its loop left open
        assert asyncio.run(client.post("/last", timeout_s=5)) == b"last"
        gc.collect()
    asyncio.run(client.aclose())
