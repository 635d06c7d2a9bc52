from __future__ import annotations

import asyncio
import sys
import threading
import time
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest
from aiohttp import web
from runtime.tools.web.fake_web import DDGS_PAGE

from icrl.errors import ConfigError
from icrl.runtime.tools.web.ddgs import Ddgs
from icrl.runtime.tools.web.errors import Unavailable


async def search(provider: Ddgs, seconds: float = 10.0):
    return await provider.search("code of rikor", 3, deadline=time.monotonic() + seconds)


@pytest.fixture
def engine(fake, monkeypatch):
    """Point the library's own DuckDuckGo engine at the fake."""
    from ddgs.engines.duckduckgo import Duckduckgo

    monkeypatch.setattr(Duckduckgo, "search_url", f"{fake.url}/html/")
    monkeypatch.delenv("DDGS_PROXY", raising=False)


async def test_results_of_the_library(fake, engine):
    fake.pages["/html/"] = lambda _: web.Response(text=DDGS_PAGE, content_type="text/html")
    provider = Ddgs(backend="duckduckgo")
    hits = await search(provider)
    assert [(hit.title, hit.url, hit.snippet, hit.source) for hit in hits] == [
        ("Rikor", "https://rikor.example/", "Its code is 113.", "ddgs")
    ]
    await provider.aclose()


@pytest.mark.parametrize("status", [200, 202, 403, 429, 500])
async def test_refusals_and_nothing_are_the_same_to_it(fake, engine, status):
    fake.pages["/html/"] = lambda _: web.Response(status=status, text="<html>you are a robot</html>")
    provider = Ddgs(backend="duckduckgo")
    with pytest.raises(Unavailable, match="found nothing, or was refused") as caught:
        await search(provider)
    assert "robot" not in str(caught.value)
    await provider.aclose()


@pytest.fixture
def library(monkeypatch):
    """Stand in for the library; its searches wait for an event."""
    gate = threading.Event()

    class DDGS:
        def __init__(self, timeout: int) -> None:
            pass

        def text(self, query: str, max_results: int, backend: str) -> list[dict[str, str]]:
            gate.wait(10)
            return [{"title": "", "href": "ftp://x", "body": ""}] * max_results

    module = ModuleType("ddgs")
    module.DDGS = DDGS
    module.__spec__ = ModuleSpec("ddgs", None)
    monkeypatch.setitem(sys.modules, "ddgs", module)
    yield gate
    gate.set()


async def test_a_late_answer_keeps_its_thread_and_nobody_waits(library):
    provider = Ddgs(max_concurrency=1)
    for _ in range(2):
        with pytest.raises(Unavailable, match="gave no answer within"):
            await search(provider, seconds=0.1)
    with pytest.raises(Unavailable, match="no time was left"):
        await search(provider, seconds=-1.0)
    assert provider.busy == 1
    library.set()
    with pytest.raises(Unavailable, match="found nothing"):
        await search(provider)
    assert provider.busy == 0
    await provider.aclose()
    await asyncio.sleep(0)


def test_limits():
    provider = Ddgs()
    assert (provider.max_concurrency, provider.calls_per_s, repr(provider)) == (2, 1.0, "<ddgs auto>")
    with pytest.raises(ConfigError, match="max_concurrency"):
        Ddgs(max_concurrency=0)
