"""Turns at hosts, robots.txt, when to try again, charsets, and names."""

from __future__ import annotations

import asyncio
import pickle
import socket
import threading
import time
from contextlib import suppress
from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from icrl.errors import ConfigError, ToolBusy
from icrl.runtime.tools.web import robots as robots_module
from icrl.runtime.tools.web.address import AddressGate
from icrl.runtime.tools.web.charset import decode_text
from icrl.runtime.tools.web.client import PageClient
from icrl.runtime.tools.web.errors import RateLimited, Unavailable
from icrl.runtime.tools.web.hosts import HostLimits, Hosts
from icrl.runtime.tools.web.keys import Key
from icrl.runtime.tools.web.resolver import ThreadResolver
from icrl.runtime.tools.web.retry_after import MAX_RETRY_AFTER_S, retry_after_s
from icrl.runtime.tools.web.robots import Robots, parse_robots
from icrl.runtime.tools.web.url import PageRefused, UrlPolicy


async def test_turns_at_a_host():
    hosts, inside, most = Hosts(HostLimits(max_concurrency=2, interval_s=0)), 0, 0

    async def visit() -> None:
        nonlocal inside, most
        async with hosts.visit("a", deadline=time.monotonic() + 5.0):
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0.001)
            inside -= 1

    await asyncio.gather(*(visit() for _ in range(20)))
    assert (inside, most) == (0, 2)


async def test_turns_that_would_come_too_late():
    hosts = Hosts(HostLimits(max_concurrency=1, interval_s=0, max_queue=1))
    async with hosts.visit("a", deadline=time.monotonic() + 5.0):
        async with hosts.visit("b", deadline=time.monotonic() + 5.0):
            pass
        with pytest.raises(RateLimited, match="too many calls wait for a"):
            async with hosts.visit("a", deadline=time.monotonic() + 0.01):
                pass
        waiting = asyncio.create_task(hosts.visit("a", deadline=time.monotonic() + 5.0).__aenter__())
        await asyncio.sleep(0)
        with pytest.raises(ToolBusy):
            async with hosts.visit("a", deadline=time.monotonic() + 5.0):
                pass
        waiting.cancel()
    paced = Hosts(HostLimits(interval_s=60.0))
    async with paced.visit("a", deadline=time.monotonic() + 5.0):
        pass
    with pytest.raises(RateLimited, match="a is asked too often") as caught:
        async with paced.visit("a", deadline=time.monotonic() + 5.0):
            pass
    assert 59.0 < caught.value.retry_after_s <= 60.0


async def test_idle_hosts_are_forgotten_and_busy_ones_stay():
    hosts = Hosts(HostLimits(max_hosts=3, interval_s=60.0))
    async with hosts.visit("busy", deadline=time.monotonic() + 5.0):
        for name in "abcdefgh":
            async with hosts.visit(name, deadline=time.monotonic() + 5.0):
                pass
        assert len(hosts) == 3
        with pytest.raises(RateLimited):
            async with hosts.visit("busy", deadline=time.monotonic() + 5.0):
                pass


@pytest.mark.parametrize("name", ["max_concurrency", "interval_s", "max_queue", "max_hosts"])
def test_host_limits_are_checked(name):
    with pytest.raises(ConfigError, match=name):
        HostLimits(**{name: -1})


@pytest.mark.parametrize(
    ("text", "path", "allowed"),
    [
        ("", "/x", True),
        ("User-agent: *\nDisallow: /", "/x", False),
        ("User-agent: *\n\nDisallow: /", "/x", False),
        ("USER-AGENT : *\nDISALLOW : /x # all of it", "/x/y", False),
        ("User-agent: other\nDisallow: /", "/x", True),
        ("User-agent: icrl\nDisallow:\nUser-agent: *\nDisallow: /", "/x", True),
        ("User-agent: *\nDisallow: /\nUser-agent: ICRL\nAllow: /", "/x", True),
        ("User-agent: *\nAllow: /x/y\nDisallow: /x", "/x/y", True),
        ("User-agent: *\nDisallow: *", "/x", False),
        ("User-agent: *\nDisallow: /x/*", "/x/y", False),
        ("User-agent: *\nDisallow: /*.pdf$", "/x", True),
        ("User-agent: *\nDisallow: /%7Ex", "/~x", False),
        ("User-agent: *\nDisallow: //[\nDisallow: http://[\nDisallow: /x", "/x", False),
        ("User-agent: *\nCrawl-delay: ²\nRequest-rate: ²/²\nDisallow: /x", "/x", False),
        ("User-agent: *\nCrawl-delay: " + "9" * 5000 + "\nDisallow: /x", "/x", False),
        ("\ufeffUser-agent: *\nDisallow: /", "/x", True),
        ("<html>not found</html>", "/x", True),
        ("User-agent: *\n" + "Allow: /a\n" * 5000 + "Disallow: /", "/x", True),
    ],
)
def test_rules(text, path, allowed):
    assert parse_robots(text).can_fetch("icrl", f"https://rikor.example{path}") is allowed


@given(
    st.lists(st.sampled_from(["User-agent: *", "Disallow: /", "Allow:", "[", "//", "%", "\n", ":", "²"])).map("".join)
)
def test_reading_rules_never_fails(text):
    assert parse_robots(text).can_fetch("icrl", "https://rikor.example/[") in (True, False)


@pytest.fixture
async def robots(fake):
    gate = AddressGate(ports={fake.port}, allow_address=lambda _: True)
    client = PageClient(UrlPolicy(ports=(fake.port,)), gate, Hosts(HostLimits(interval_s=0)))
    yield Robots(client)
    await client.aclose()


async def check(robots: Robots, fake, path: str = "/") -> None:
    await robots.check(URL(fake.url + path), deadline=time.monotonic() + 5.0)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
async def test_no_rules_allow_everything(fake, robots, status):
    fake.robots = (status, "User-agent: *\nDisallow: /")
    await check(robots, fake)


@pytest.mark.parametrize("status", [429, 500, 503, 302, 204])
async def test_rules_that_cannot_be_read_allow_nothing_for_a_minute(fake, robots, status, monkeypatch):
    fake.robots = (status, "")
    for _ in range(2):
        with pytest.raises(Unavailable, match="does not say now"):
            await check(robots, fake)
    assert len(fake.requests) == 1
    monkeypatch.setattr(robots_module, "FAILURE_TTL_S", -1.0)
    robots.clear()
    with pytest.raises(Unavailable):
        await check(robots, fake)
    fake.robots = (200, "")
    await check(robots, fake)


async def test_rules_are_asked_for_once_and_again_when_they_are_old(fake, robots, monkeypatch):
    fake.robots = (200, "User-agent: *\nDisallow: /x")
    await asyncio.gather(*(check(robots, fake) for _ in range(10)))
    assert fake.paths == ["/robots.txt"]
    with pytest.raises(PageRefused):
        await check(robots, fake, "/x")
    monkeypatch.setattr(robots_module, "TTL_S", -1.0)
    robots.clear()
    for _ in range(2):
        await check(robots, fake)
    assert len(fake.requests) == 3


async def test_broken_and_long_rules(fake, robots):
    fake.page("/robots.txt", b"x", Content_Encoding="br")
    with pytest.raises(Unavailable):
        await check(robots, fake)
    robots.clear()
    fake.page("/robots.txt", "User-agent: *\nDisallow: /\n" + "#" * 10_000_000, "text/plain")
    with pytest.raises(PageRefused):
        await check(robots, fake)


async def test_the_table_of_origins_is_bounded(fake, robots, monkeypatch):
    monkeypatch.setattr(robots_module, "MAX_ORIGINS", 2)
    for number in range(1, 6):
        await robots.check(URL(f"http://127.0.0.1:{fake.port}/"), deadline=time.monotonic() + 5.0)
        fake.robots = (404, str(number))
        with suppress(Unavailable):
            await robots.check(URL(f"http://127.0.0.{number + 1}:{fake.port}/"), deadline=time.monotonic() + 5.0)
    assert len(robots) == 2


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("7", 7.0),
        (" 0 ", 0.0),
        ("1.5", 1.5),
        ("999999999", MAX_RETRY_AFTER_S),
        ("", None),
        ("-1", None),
        ("1e9", None),
        ("nan", None),
        ("inf", None),
        ("soon", None),
        ("²", None),
        ("9" * 5000, None),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", MAX_RETRY_AFTER_S),
        ("Fri, 31 Dec 99999 23:59:59 GMT", None),
    ],
)
def test_when_to_try_again(text, seconds):
    assert retry_after_s({"Retry-After": text}) == seconds


def test_when_to_try_again_as_a_date():
    seconds = retry_after_s({"Retry-After": formatdate(time.time() + 100, usegmt=True)})
    assert 95.0 < seconds <= 100.0
    assert retry_after_s({}) is None


@pytest.mark.parametrize(
    ("data", "charset", "text"),
    [
        ("Größe".encode(), None, "Größe"),
        ("Größe".encode("latin-1"), None, "Größe"),
        ("Größe".encode("latin-1"), "latin-1", "Größe"),
        ("“Größe”".encode("cp1252"), "iso-8859-1", "“Größe”"),
        ("Größe".encode("utf-16"), "latin-1", "Größe"),
        (b"\xef\xbb\xbf" + "Größe".encode(), "latin-1", "Größe"),
        ("日本".encode("shift-jis"), "Shift_JIS", "日本"),
        ("日本".encode("euc-jp"), " EUC-JP ", "日本"),
        ("你好".encode("gb18030"), "gb2312", "你好"),
        ("Größe".encode()[:-3], None, "Gr"[:2] + "ö"),
        ("Größe".encode("latin-1"), "utf-8", "Gr\ufffd\ufffde"),
        (b"<meta charset=koi8-r>" + "Привет".encode("koi8-r"), None, "<meta charset=koi8-r>Привет"),
        (b'<META content="text/html; charset=utf-16">x', None, '<META content="text/html; charset=utf-16">x'),
    ],
)
def test_charsets(data, charset, text):
    assert decode_text(data, charset=charset, is_html=True) == text


@pytest.mark.parametrize(
    "charset", ["base64", "zip", "rot13", "unicode_escape", "idna", "punycode", "utf-7", "\0", "é" * 99]
)
def test_codecs_that_are_no_charsets(charset):
    assert decode_text(b"PGI+ \\x41", charset=charset, is_html=False) == "PGI+ \\x41"


@given(st.binary(max_size=200), st.sampled_from([None, "utf-8", "utf-16", "hz", "iso-2022-jp", "big5", "x"]))
def test_decoding_never_fails(data, charset):
    assert isinstance(decode_text(data, charset=charset, is_html=True), str)


async def test_slow_names_hold_up_nobody_else(monkeypatch):
    gate = threading.Event()
    real = socket.getaddrinfo
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *a, **k: gate.wait(10) if host == "slow" else real(host, *a, **k)
    )
    resolver = ThreadResolver()
    slow = [asyncio.create_task(resolver.resolve("slow", 80)) for _ in range(8)]
    await asyncio.sleep(0)
    assert (await resolver.resolve("127.0.0.1", 80))[0]["host"] == "127.0.0.1"
    assert await asyncio.to_thread(lambda: 7) == 7
    for task in slow:
        task.cancel()
    gate.set()
    await asyncio.gather(*slow, return_exceptions=True)
    await resolver.close()


def test_keys_do_not_leave_their_process():
    key = Key("s3cret", variable="SERPER_API_KEY")
    assert key.reveal() == "s3cret"
    assert "s3cret" not in f"{key} {key!r} {[key]}"
    with pytest.raises(TypeError, match="does not leave"):
        pickle.dumps(key)
