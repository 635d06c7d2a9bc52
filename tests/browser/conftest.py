"""A real browser that looks at a running server's page, and notices whatever a person would not see."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import pytest
import pytest_asyncio
from demo import Library, agent

from icrl.serve.config import ServeConfig
from icrl.serve.server import Server, running

playwright = pytest.importorskip("playwright.async_api", reason="the page's tests need playwright")

FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
]
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or "/usr/bin/chromium"


@dataclass(kw_only=True)
class Visit:
    """One person's look at one server."""

    page: Any
    """The browser's page."""
    server: Server
    """The server."""
    library: Library
    """Its tool."""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    """What the page asked of `/v1/responses`, in order."""
    complaints: list[str] = field(default_factory=list)
    """Errors of the console and of scripts."""
    outside: list[str] = field(default_factory=list)
    """Requests to anywhere else."""

    def watch(self) -> None:
        """Take note of everything that the page does."""
        self.page.on("console", lambda m: self.complaints.append(m.text) if m.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", self._requested)

    def _requested(self, request: Any) -> None:
        if not request.url.startswith((self.server.address, "data:")):
            self.outside.append(request.url)
        if request.method == "POST" and request.url.endswith("/v1/responses"):
            self.bodies.append(request.post_data_json)

    async def ask(self, text: str, *, wait: bool = True) -> Any:
        """Type a question, press Enter, and return the answer's element; by default once it is complete."""
        answers = self.page.get_by_role("article", name="Answer")
        before = await answers.count()
        await self.page.get_by_label("Your question").fill(text)
        await self.page.keyboard.press("Enter")
        answer = answers.nth(before)
        await answer.wait_for()
        if wait:
            await answer.and_(self.page.locator("article:not([aria-busy])")).wait_for()
        return answer


Look = Callable[..., Awaitable[Visit]]


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def chromium() -> AsyncIterator[Any]:
    async with playwright.async_playwright() as driver:
        browser = await driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        await browser.close()


@pytest_asyncio.fixture(loop_scope="session")
async def look(chromium: Any, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Look]:
    """Opens the page; at the end of the test there may be no complaint and no request to anywhere else."""
    monkeypatch.delenv("ICRL_API_KEY", raising=False)
    visits: list[Visit] = []
    async with AsyncExitStack() as stack:

        async def open_page(*, latency_s: float = 0.0, options: dict[str, Any] | None = None, **config: Any) -> Visit:
            library = Library(latency_s=latency_s)
            settings = ServeConfig(**({"port": 0, "access_log": False, "name": "demo", "grace_s": 0.2} | config))
            server = await stack.enter_async_context(
                running(settings, lambda: agent(latency_s=latency_s, library=library))
            )
            await server.loading
            context = await chromium.new_context(**{"reduced_motion": "reduce"} | (options or {}))
            stack.push_async_callback(context.close)
            page = await context.new_page()
            page.set_default_timeout(10_000)
            visits.append(Visit(page=page, server=server, library=library))
            visits[-1].watch()
            await page.goto(server.address)
            await page.locator("#state[data-state=ready]").wait_for()
            return visits[-1]

        yield open_page
        for visit in visits:
            assert visit.complaints == []
            assert visit.outside == []
