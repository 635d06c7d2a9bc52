"""REPL sessions: one child, one owner."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from runtime.sandbox.confinement import children_of, eventually, needs_layers, state_of

from icrl.errors import ToolBusy
from icrl.runtime.sandbox.sandbox import Sandbox

pytestmark = [needs_layers, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["restricted", "plain"])
async def box(request) -> AsyncIterator[Sandbox]:
    async with Sandbox("light", request.param, max_sessions=4) as opened:
        yield opened


def zygote(box: Sandbox) -> int:
    return box.zygotes["light"]


async def test_programs_share_variables_functions_and_imports(box):
    async with box.session() as repl:
        assert (await repl.run("import math\ndef f(x):\n    return math.isqrt(x)\ny = 16")).status == "ok"
        result = await repl.run("print(y)\nf(y)")
        assert (result.stdout, result.value) == ("16\n", "4")
        assert result.cpu_s < 1


async def test_sessions_share_nothing(box):
    async with box.session() as one, box.session() as other, one.session() as third:
        await one.run("x = 1")
        assert "NameError" in (await other.run("x")).error
        assert "NameError" in (await third.run("x")).error
        assert "NameError" in (await box.run("x")).error
        assert (await one.run("x")).value == "1"


async def test_an_error_leaves_the_variables(box):
    async with box.session() as repl:
        await repl.run("x = 1")
        failed = await repl.run("x = 2\n1 / 0")
        assert failed.error.splitlines()[1:3] == ['  File "<snippet>", line 2, in <module>', "    1 / 0"]
        assert (await repl.run("x")).value == "2"


async def test_a_traceback_through_an_earlier_program_shows_no_wrong_line(box):
    async with box.session() as repl:
        await repl.run("def f():\n    return 1 / 0")
        error = (await repl.run("a = 1\nf()")).error
        assert error == (
            'Traceback (most recent call last):\n  File "<snippet>", line 2, in <module>\n    f()\n'
            '  File "<snippet>", line 2, in f\nZeroDivisionError: division by zero'
        )


async def test_each_program_has_its_own_input_and_output(box):
    async with box.session() as repl:
        assert (await repl.run("print(input())", stdin="one\n")).stdout == "one\n"
        assert (await repl.run("print(input())", stdin="two\n")).stdout == "two\n"


async def test_a_killed_program_takes_the_variables_and_says_so(box):
    async with box.session() as repl:
        await repl.run("x = 1")
        stopped = await repl.run("print('on')\nwhile True: pass", timeout_s=0.3)
        assert (stopped.status, stopped.stdout) == ("timeout", "on\n")
        assert stopped.error.endswith("The variables of this session are gone.")
        assert "NameError" in (await repl.run("x")).error
        assert (await repl.run("x = [0] * 10 ** 10")).error.endswith("The variables of this session are gone.")
        assert (await repl.run("1")).value == "1"


async def test_between_programs_the_child_is_stopped(box):
    async with box.session() as repl:
        await repl.run("1")
        (child,) = children_of(zygote(box))
        await eventually(lambda: state_of(child) == "T")
        assert (await repl.run("2")).value == "2"
        assert children_of(zygote(box)) == [child]
    await eventually(lambda: children_of(zygote(box)) == [])


async def test_the_child_ends_after_a_time_without_use(box):
    async with Sandbox("light", "plain", session_idle_s=0.05) as quick, quick.session() as repl:
        await repl.run("x = 1")
        await eventually(lambda: children_of(zygote(quick)) == [])
        lost = await repl.run("print(x)")
        assert lost.status == "crashed"
        assert lost.error.startswith("not run: the session's interpreter has ended.")
        assert (await repl.run("x = 2\nx")).value == "2"


async def test_closing_the_sandbox_ends_sessions(box):
    async with Sandbox("light", "plain") as other:
        repl = other.session()
        await repl.run("x = 1")
        await other.aclose()
        assert (await repl.run("x")).status == "crashed"
        assert (await repl.run("x = 3\nx")).value == "3"
        await repl.aclose()


async def test_cancelling_a_program_kills_the_child(box):
    async with box.session() as repl:
        await repl.run("x = 1")
        (child,) = children_of(zygote(box))
        await eventually(lambda: state_of(child) == "T")
        task = asyncio.create_task(repl.run("while True: pass", timeout_s=60))
        await eventually(lambda: state_of(child) == "R")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert state_of(child) == "gone"
        assert "NameError" in (await repl.run("x")).error


async def test_there_are_only_so_many_sessions(box):
    repls = [box.session() for _ in range(5)]
    for repl in repls[:4]:
        await repl.run("1")
    with pytest.raises(ToolBusy, match="holds 4 sessions"):
        await repls[4].run("1")
    await repls[0].aclose()
    assert (await repls[4].run("1")).value == "1"
    for repl in repls:
        await repl.aclose()


async def test_programs_of_one_session_wait_for_each_other(box):
    async with box.session() as repl:
        results = await asyncio.gather(repl.run("x = [1]"), repl.run("x.append(2)"), repl.run("x"))
        assert results[2].value == "[1, 2]"


FORGED = """
import json, os, time
line = {"run": 1, "status": "ok", "value": "'forged'", "error": None, "truncated": False, "cpu_s": 0, "max_rss_mb": 0}
os.write(3, json.dumps(line).encode() + b"\\n")
time.sleep(0.5)
"""


async def test_a_forged_reply_is_the_programs_own_and_ends_the_session():
    async with Sandbox("light", "plain") as box, box.session() as repl:
        assert (await repl.run(FORGED)).value == "'forged'"
        assert (await repl.run("1")).status == "crashed"
        assert (await repl.run("1")).value == "1"
