"""Serper, Brave, Tavily and SearXNG against a server that plays them, in every mood."""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Callable

import pytest
from aiohttp import web
from runtime.tools.web.fake_web import FakeWeb

from icrl.errors import ConfigError, ToolError
from icrl.runtime.tools.web.api import MAX_ANSWER_BYTES, service_url
from icrl.runtime.tools.web.brave import Brave
from icrl.runtime.tools.web.errors import Auth, BadQuery, RateLimited, Unavailable
from icrl.runtime.tools.web.provider import Provider
from icrl.runtime.tools.web.searxng import SearXNG
from icrl.runtime.tools.web.serper import Serper
from icrl.runtime.tools.web.tavily import Tavily

KEY = "sk-VERY-secret-0123456789"

MAKERS: dict[str, Callable[..., Provider]] = {
    "searxng": lambda url, **limits: SearXNG(f"{url}/searxng", **limits),
    "serper": lambda url, **limits: Serper(KEY, url=f"{url}/serper", **limits),
    "brave": lambda url, **limits: Brave(KEY, url=f"{url}/brave", **limits),
    "tavily": lambda url, **limits: Tavily(KEY, url=f"{url}/tavily", **limits),
}


async def search(provider: Provider, *, k: int = 5, seconds: float = 5.0):
    try:
        return await provider.search("code of Rikor & more", k, deadline=time.monotonic() + seconds)
    finally:
        await provider.aclose()


@pytest.fixture(params=MAKERS)
def make(request) -> Callable[..., Provider]:
    return MAKERS[request.param]


@pytest.mark.parametrize("mode", ["ok", "gzip"])
async def test_hits_are_ranked_and_what_is_no_web_address_is_left_out(make, fake: FakeWeb, mode):
    fake.mode = mode
    provider = make(fake.url)
    hits = await search(provider)
    assert [(hit.rank, hit.url) for hit in hits] == [
        (1, "https://rikor.example/"),
        (2, "https://nebar.example/map?a=1&b=2"),
    ]
    assert hits[0].snippet == "Its code\u200b is 113."
    assert (hits[1].title, hits[1].snippet, hits[1].source) == ("", "", provider.name)
    assert isinstance(provider, Provider)


async def test_no_more_hits_than_asked_for(make, fake):
    assert len(await search(make(fake.url), k=1)) == 1


async def test_nothing_found_is_an_answer(make, fake):
    fake.mode = "empty"
    assert await search(make(fake.url)) == []


async def test_each_service_is_asked_in_its_own_way(fake):
    for make in MAKERS.values():
        await search(make(fake.url))
    by_path = {request.path: request for request in fake.requests}
    assert by_path["/searxng/search"].query == {"q": "code of Rikor & more", "format": "json"}
    assert by_path["/brave"].query == {"q": "code of Rikor & more", "count": "5", "text_decorations": "false"}
    assert by_path["/brave"].headers["X-Subscription-Token"] == KEY
    assert by_path["/serper"].headers["X-API-KEY"] == KEY
    assert by_path["/tavily"].headers["Authorization"] == f"Bearer {KEY}"
    assert fake.bodies == [
        {"q": "code of Rikor & more", "num": 5},
        {"query": "code of Rikor & more", "max_results": 5},
    ]
    assert all(request.headers["User-Agent"] == "icrl" for request in fake.requests)
    assert all("Cookie" not in request.headers for request in fake.requests)


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        ("202", RateLimited),
        ("429", RateLimited),
        ("400", BadQuery),
        ("414", BadQuery),
        ("422", BadQuery),
        ("401", Auth),
        ("402", Auth),
        ("403", Auth),
        ("204", Unavailable),
        ("302", Unavailable),
        ("404", Unavailable),
        ("500", Unavailable),
        ("503", Unavailable),
        ("blank", Unavailable),
        ("garbage", Unavailable),
        ("other", Unavailable),
        ("deep", Unavailable),
        ("types", Unavailable),
        ("big", Unavailable),
        ("bomb", Unavailable),
        ("br", Unavailable),
        ("cut", Unavailable),
        ("loop", Unavailable),
    ],
)
async def test_everything_else_is_a_typed_error_without_the_key(make, fake, mode, kind, caplog):
    fake.mode = mode
    caplog.set_level(logging.DEBUG)
    provider = make(fake.url)
    with pytest.raises(ToolError) as caught:
        await search(provider)
    assert type(caught.value) is kind
    if mode in ("202", "429", "503"):
        assert caught.value.retry_after_s == 7.0
    told = "".join(traceback.format_exception(caught.value)) + repr(provider) + repr(vars(provider)) + caplog.text
    assert KEY not in told
    assert "your key is bad" not in told
    chain = caught.value
    while chain is not None:
        assert KEY not in repr(chain) + repr(chain.args)
        chain = chain.__context__ or chain.__cause__
    assert len(fake.requests) == 1


@pytest.mark.parametrize("mode", ["drip", "hang"])
async def test_a_slow_service_costs_no_more_than_the_limit(make, fake, mode):
    fake.mode = mode
    started = time.monotonic()
    with pytest.raises(Unavailable, match=r"gave no answer within 0\.1 s"):
        await search(make(fake.url, timeout_s=0.1))
    with pytest.raises(Unavailable, match="gave no answer within 0"):
        await search(make(fake.url), seconds=0.1)
    with pytest.raises(Unavailable, match="no time was left"):
        await search(make(fake.url), seconds=-1.0)
    assert time.monotonic() - started < 5.0


async def test_a_service_that_is_not_there(make, unused_tcp_port):
    with pytest.raises(Unavailable, match="cannot be reached"):
        await search(make(f"http://127.0.0.1:{unused_tcp_port}"))


async def test_long_answers_are_not_read_to_their_end(fake):
    fake.mode = "big"
    with pytest.raises(Unavailable, match=f"more than {MAX_ANSWER_BYTES:,} bytes"):
        await search(Serper(KEY, url=f"{fake.url}/serper"))


async def test_engines_that_did_not_answer_are_not_nothing(fake):
    fake.pages["/searxng/search"] = lambda _: web.json_response({"results": [], "unresponsive_engines": [["x", "y"]]})
    with pytest.raises(Unavailable, match="some of its engines did not answer"):
        await search(SearXNG(f"{fake.url}/searxng"))


async def test_no_proxy_of_the_environment_is_used(make, fake, monkeypatch, unused_tcp_port):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{unused_tcp_port}")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert await search(make(fake.url))


async def test_a_closed_provider_opens_again(make, fake):
    provider = make(fake.url)
    assert await search(provider) == await search(provider)


def test_keys_come_from_the_environment_and_show_nowhere(monkeypatch):
    for kind, variable in ((Serper, "SERPER_API_KEY"), (Brave, "BRAVE_API_KEY"), (Tavily, "TAVILY_API_KEY")):
        monkeypatch.delenv(variable, raising=False)
        with pytest.raises(ConfigError, match=f"{variable}: not set"):
            kind()
        monkeypatch.setenv(variable, KEY)
        assert KEY not in repr(kind()) + repr(vars(kind())) + kind().fingerprint
        with pytest.raises(ConfigError, match=variable) as caught:
            kind(f"{KEY}\r\nX-Evil: 1")
        assert KEY not in str(caught.value)


def test_addresses_are_checked(monkeypatch):
    monkeypatch.delenv("SEARXNG_URL", raising=False)
    with pytest.raises(ConfigError, match="SEARXNG_URL: write the service's address"):
        SearXNG()
    monkeypatch.setenv("SEARXNG_URL", "http://search.example")
    assert repr(SearXNG()) == "<searxng http://search.example>"
    for bad in ("file:///etc/passwd", "localhost:8080", "http://", "http://[::1", ""):
        with pytest.raises(ConfigError, match="address"):
            service_url(bad, setting="searxng")
    with pytest.raises(ConfigError, match="user name or password") as caught:
        SearXNG("http://me:hunter2@search.example")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("limits", "message"),
    [({"max_concurrency": 0}, "max_concurrency"), ({"timeout_s": 0}, "timeout_s"), ({"cost_per_call": -1}, "cost")],
)
def test_limits_are_checked(make, limits, message):
    with pytest.raises(ConfigError, match=message):
        make("http://search.example", **limits)
