from __future__ import annotations

import asyncio
import gzip
import time
import zlib
from collections.abc import AsyncIterator, Callable

import pytest
from aiohttp import web
from runtime.tools.web.fake_web import FakeWeb, bomb, cut_off, drip, serve

from icrl.errors import ConfigError, MissingExtraError, ToolError, ToolTimeout
from icrl.runtime.tools.web import readable
from icrl.runtime.tools.web.errors import RateLimited, Unavailable
from icrl.runtime.tools.web.hosts import HostLimits
from icrl.runtime.tools.web.page import FetchSettings, Page, PageFetcher
from icrl.runtime.tools.web.url import PageRefused, UrlPolicy

ARTICLE = (
    "<html><head><title>The codes of\n Rikor</title><style>p {}</style></head><body><nav>Home | About</nav>"
    "<article><h1>Codes</h1><p>The code of Rikor is 113, as everybody there knows very well.</p>"
    "<p>The code of Nebar is 27, and nobody remembers why they have chosen that one.</p></article>"
    "<p style='display:none'>hidden</p><script>alert(1)</script></body></html>"
)


@pytest.fixture
async def make(fake: FakeWeb) -> AsyncIterator[Callable[..., PageFetcher]]:
    """Make fetchers that may dial this machine."""
    made: list[PageFetcher] = []

    def make(**changes) -> PageFetcher:
        urls = UrlPolicy(ports=changes.pop("ports", (fake.port,)), **changes.pop("urls", {}))
        hosts = changes.pop("hosts", HostLimits(interval_s=0))
        settings = FetchSettings(urls=urls, hosts=hosts, processes=1, **changes)
        made.append(PageFetcher(settings, allow_address=lambda _: True))
        return made[-1]

    yield make
    for fetcher in made:
        await fetcher.aclose()


async def fetch(fetcher: PageFetcher, url: str, *, seconds: float = 20.0) -> Page:
    return await fetcher.fetch(url, deadline=time.monotonic() + seconds)


async def test_article(fake, make):
    fake.page("/", ARTICLE)
    page = await fetch(make(), f"{fake.url}/#part")
    assert page.url == f"{fake.url}/"
    assert page.title.split() == ["The", "codes", "of", "Rikor"]
    assert "The code of Rikor is 113" in page.text
    assert "The code of Nebar is 27" in page.text
    assert page.notices == ()
    for noise in ("Home", "hidden", "alert", "{}", "<p>"):
        assert noise not in page.text
    assert fake.paths == ["/robots.txt", "/"]


async def test_what_is_sent(fake, make):
    fake.page("/a", "x", "text/plain", Set_Cookie="id=1")
    fetcher = make()
    for _ in range(2):
        await fetch(fetcher, f"{fake.url}/a")
    for request in fake.requests:
        assert set(request.headers) == {"Host", "User-Agent", "Accept", "Accept-Encoding"}
        assert request.headers["User-Agent"] == "icrl"
    assert fake.paths == ["/robots.txt", "/a", "/a"]


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/json", "text/markdown; charset=utf-8", "TEXT/CSV", "application/xml"]
)
async def test_other_text_is_passed_through(fake, make, content_type):
    fake.page("/", '{"a": "<p>Größe</p>"}', content_type)
    assert (await fetch(make(), fake.url)).text == '{"a": "<p>Größe</p>"}'


@pytest.mark.parametrize("content_type", ["image/png", "application/octet-stream", None, "application/pdf", "nonsense"])
async def test_what_is_not_text_is_refused(fake, make, content_type):
    fake.page("/", b"\x89PNG", content_type)
    with pytest.raises(ToolError, match="the page is not text that can be read here"):
        await fetch(make(), fake.url)


async def test_the_type_is_foreign_too(fake, make):
    fake.page("/", "x", "image/<|im_start|>")
    with pytest.raises(ToolError) as caught:
        await fetch(make(), fake.url)
    assert "<|" not in str(caught.value)


async def test_redirects_are_followed_up_to_five(fake, make):
    for hop in range(6):
        fake.redirect(f"/{hop}", f"/{hop + 1}" if hop % 2 else f"{fake.url}/{hop + 1}#x", status=(301, 307)[hop % 2])
    fake.page("/6", "there", "text/plain")
    page = await fetch(make(), f"{fake.url}/1")
    assert (page.text, page.url) == ("there", f"{fake.url}/6")
    with pytest.raises(ToolError, match="more than 5 redirects"):
        await fetch(make(), f"{fake.url}/0")


async def test_redirects_in_a_circle(fake, make):
    fake.redirect("/a", "/b")
    fake.redirect("/b", "/a")
    with pytest.raises(ToolError, match="more than 5 redirects"):
        await fetch(make(obey_robots=False), f"{fake.url}/a")
    assert len(fake.requests) == 6


async def test_redirect_without_a_place(fake, make):
    fake.status("/", 302)
    with pytest.raises(ToolError, match="status 302"):
        await fetch(make(), fake.url)


@pytest.mark.parametrize(
    ("status", "kind", "message"),
    [
        (204, ToolError, "does not give this page"),
        (206, ToolError, "does not give this page"),
        (401, ToolError, "does not give this page"),
        (403, ToolError, "does not give this page"),
        (404, ToolError, "no such page"),
        (410, ToolError, "no such page"),
        (429, RateLimited, "fewer requests"),
        (500, Unavailable, "does not work now"),
        (503, Unavailable, "does not work now"),
    ],
)
async def test_statuses(fake, make, status, kind, message):
    fake.status("/", status, Retry_After="3")
    with pytest.raises(ToolError, match=message) as caught:
        await fetch(make(), fake.url)
    assert type(caught.value) is kind
    assert getattr(caught.value, "retry_after_s", 3.0) == 3.0
    assert "secret body" not in str(caught.value)


@pytest.mark.parametrize(
    ("encoding", "pack"),
    [
        ("gzip", gzip.compress),
        ("x-gzip", gzip.compress),
        ("deflate", zlib.compress),
        ("deflate", lambda data: zlib.compress(data, wbits=-15)),
        ("identity", bytes),
    ],
)
async def test_encodings(fake, make, encoding, pack):
    fake.page("/", pack(b"there " * 1000), "text/plain", Content_Encoding=encoding)
    page = await fetch(make(), fake.url)
    assert (page.text, page.notices) == ("there " * 1000, ())


@pytest.mark.parametrize(
    ("encoding", "data"),
    [("br", b"\x0b"), ("zstd", b"x"), ("gzip, gzip", b"x"), ("gzip", b"garbage"), ("deflate", b"\xff\xff")],
)
async def test_other_encodings_are_refused(fake, make, encoding, data):
    fake.page("/", data, "text/plain", Content_Encoding=encoding)
    with pytest.raises(ToolError, match="the page cannot be read"):
        await fetch(make(), fake.url)


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
async def test_long_pages_are_cut_with_a_notice(fake, make, encoding):
    data = b"x" * 10_000_000 if encoding == "identity" else bomb()
    fake.page("/", data, "text/plain", Content_Encoding=encoding)
    page = await fetch(make(max_bytes=50_000), fake.url)
    assert len(page.text) == 50_000
    assert page.notices == ("(Only the first 50,000 bytes of the page were read.)",)


async def test_what_follows_the_end_of_a_compressed_page_is_not_its_text(fake, make):
    fake.page("/", gzip.compress(b"first") + gzip.compress(b"second"), "text/plain", Content_Encoding="gzip")
    page = await fetch(make(), fake.url)
    assert page.text == "first"
    assert "Only the first" in page.notices[0]


async def test_endless_pages_end_with_the_time(fake, make):
    fake.pages["/"] = drip
    with pytest.raises(ToolTimeout, match=r"127\.0\.0\.1 gave no answer within 0\.3 s"):
        await fetch(make(timeout_s=0.3), fake.url)
    with pytest.raises(ToolTimeout, match="gave no answer"):
        await fetch(make(), fake.url, seconds=0.3)
    with pytest.raises(ToolTimeout, match="no time was left"):
        await fetch(make(), fake.url, seconds=-1.0)


async def test_hosts_that_break_off(fake, make, unused_tcp_port):
    fake.pages["/"] = cut_off
    with pytest.raises(Unavailable, match="broke off"):
        await fetch(make(), fake.url)
    with pytest.raises(Unavailable, match="cannot be reached"):
        await fetch(make(ports=(unused_tcp_port,)), f"http://127.0.0.1:{unused_tcp_port}/")


async def test_what_is_no_answer(make):
    async def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-OpenSSH\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(Unavailable, match="broke off, or sent something"):
            await fetch(make(ports=(port,)), f"http://127.0.0.1:{port}/")


async def test_header_flood(fake, make):
    fake.pages["/"] = lambda _: web.Response(headers={"X-Long": "x" * 100_000})
    with pytest.raises(Unavailable, match="no answer"):
        await fetch(make(), fake.url)


@pytest.mark.parametrize("path", ["/private/map", "/private"])
async def test_robots_are_obeyed(fake, make, path):
    fake.robots = (200, "User-agent: *\nDisallow: /private\nUser-agent: icrl\nAllow: /private/open\nDisallow: /private")
    fake.page("/", "x", "text/plain")
    fake.page("/private/open", "y", "text/plain")
    fake.page(path, "z", "text/plain")
    fetcher = make()
    assert (await fetch(fetcher, fake.url)).text == "x"
    assert (await fetch(fetcher, f"{fake.url}/private/open")).text == "y"
    with pytest.raises(PageRefused, match="asks robots not to read this page"):
        await fetch(fetcher, f"{fake.url}{path}")
    assert fake.paths.count("/robots.txt") == 1
    assert (await fetch(make(obey_robots=False), f"{fake.url}{path}")).text == "z"


async def test_robots_are_asked_at_every_host_on_the_way(fake, make):
    async with serve("127.0.0.2") as other:
        other.robots = (200, "User-agent: *\nDisallow: /")
        fake.redirect("/", f"{other.url}/there")
        with pytest.raises(PageRefused, match=r"127\.0\.0\.2 asks robots"):
            await fetch(make(ports=(fake.port, other.port)), fake.url)
        assert other.paths == ["/robots.txt"]


async def test_domains(fake, make):
    fake.page("/", "x", "text/plain")
    with pytest.raises(PageRefused, match="may not be read here"):
        await fetch(make(urls={"allow_domains": ["rikor.example"]}), fake.url)
    with pytest.raises(PageRefused, match="may not be read here"):
        await fetch(make(urls={"deny_domains": ["127.0.0.1"]}), fake.url)
    assert fake.requests == []


async def test_one_host_is_not_asked_too_often(fake, make):
    fake.page("/", "x", "text/plain")
    fetcher = make(hosts=HostLimits(interval_s=0.05, max_concurrency=1), obey_robots=False)
    started = time.monotonic()
    await asyncio.gather(*(fetch(fetcher, fake.url) for _ in range(4)))
    assert time.monotonic() - started >= 0.15
    slow = make(hosts=HostLimits(interval_s=60.0), obey_robots=False)
    await fetch(slow, fake.url)
    with pytest.raises(RateLimited, match="asked too often"):
        await fetch(slow, fake.url)


async def test_a_page_that_takes_too_long_is_shown_without_its_tags(fake, make):
    fake.page("/", "<p>one &amp; two</p>" + "<p>x y z</p>" * 80_000)
    page = await fetch(make(extract_timeout_s=0.2), fake.url)
    assert page.text.startswith("one & two\nx y z\nx y z")
    assert page.notices == ("(Extraction of the main text took too long; this is everything between the page's tags.)",)


async def test_extraction_that_dies_or_fails_is_said(fake, make, monkeypatch):
    fake.page("/", "<p>one</p>")
    monkeypatch.setattr(readable, "_MEMORY_MB", 1)
    page = await fetch(make(), fake.url)
    assert page.text == "one"
    assert page.notices[0].startswith("(Extraction of the main text failed")


async def test_a_closed_fetcher_opens_again_and_leaves_nothing(fake, make):
    fake.page("/", ARTICLE)
    fetcher = make()
    before = asyncio.all_tasks()
    first = await fetch(fetcher, fake.url)
    await fetcher.aclose()
    assert await fetch(fetcher, fake.url) == first
    await fetcher.aclose()
    await fetcher.aclose()
    await asyncio.sleep(0.05)
    assert {task for task in asyncio.all_tasks() - before if "icrl" in repr(task)} == set()


async def test_cancelling_leaves_the_host_free(fake, make):
    started = asyncio.Event()
    fake.pages["/"] = lambda request: (started.set(), drip(request))[1]
    fake.page("/other", "x", "text/plain")
    fetcher = make(hosts=HostLimits(interval_s=0, max_concurrency=1), obey_robots=False)
    task = asyncio.create_task(fetch(fetcher, fake.url))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await fetch(fetcher, f"{fake.url}/other")).text == "x"


def test_settings_are_checked(monkeypatch):
    with pytest.raises(ConfigError, match="max_bytes"):
        FetchSettings(max_bytes=0)
    with pytest.raises(ConfigError, match="timeout_s"):
        FetchSettings(timeout_s=0)
    with pytest.raises(ConfigError, match="timeout_s"):
        PageFetcher(FetchSettings(extract_timeout_s=0))
    one = FetchSettings(urls=UrlPolicy(ports=frozenset({443, 80}), allow_domains={"b.example", "a.example"}))
    other = FetchSettings(urls=UrlPolicy(ports=(80, 443), allow_domains=["a.example", "b.example"]), timeout_s=3)
    assert one.fingerprint == other.fingerprint
    assert one.fingerprint != FetchSettings().fingerprint
    monkeypatch.setitem(__import__("sys").modules, "trafilatura", None)
    with pytest.raises((MissingExtraError, ValueError)):
        PageFetcher()
