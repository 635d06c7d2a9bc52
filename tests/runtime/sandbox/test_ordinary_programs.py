"""What models ordinarily write runs under the restricted policy, with the output of plain Python."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from runtime.sandbox.confinement import needs_layers
from runtime.sandbox.ordinary_programs import PROGRAMS, STDIN

from icrl.runtime.sandbox import Sandbox

pytestmark = [needs_layers, pytest.mark.asyncio(loop_scope="module")]

REFUSED: frozenset[str] = frozenset()
"""Programs that plain Python runs and the policy does not: every one is named here."""
SAID_BY_CPYTHON = {"open_zero": ("ok", "20\n", None, None)}
"""Where the plain policy differs from CPython: descriptor 0 of a child is empty, and only the policy's `open` knows."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def outcomes() -> AsyncIterator[dict[str, tuple]]:
    """What each program came to, restricted and plain."""

    async def run(box: Sandbox, name: str) -> tuple:
        result = await box.run(PROGRAMS[name], timeout_s=20.0, stdin=STDIN.get(name, ""))
        return result.status, result.stdout, result.value, result.error

    async with Sandbox() as restricted, Sandbox(policy="plain") as plain:
        both = [asyncio.gather(run(restricted, name), run(plain, name)) for name in PROGRAMS]
        found = dict(zip(PROGRAMS, await asyncio.gather(*both), strict=True))
    yield {name: (restricted, SAID_BY_CPYTHON.get(name, plain)) for name, (restricted, plain) in found.items()}


async def test_there_are_enough_of_them(outcomes):
    assert len(PROGRAMS) >= 60
    assert {name for name, (_, (status, *_)) in outcomes.items() if status != "ok"} == {"uncaught", "syntax_error"}


@pytest.mark.parametrize("name", PROGRAMS)
async def test_it_prints_what_plain_python_prints(outcomes, name):
    restricted, plain = outcomes[name]
    if name in REFUSED:
        assert restricted[0] == "denied"
    else:
        assert restricted == plain


async def test_nearly_all_of_them_run(outcomes):
    same = sum(restricted == plain for restricted, plain in outcomes.values())
    assert same / len(outcomes) >= 0.97
