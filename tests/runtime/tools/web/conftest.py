from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from runtime.tools.web.fake_web import FakeWeb, serve


@pytest.fixture
async def fake() -> AsyncIterator[FakeWeb]:
    async with serve() as fake:
        yield fake
