from __future__ import annotations

import asyncio

import pytest
from replay_executor import InProcess

from icrl.errors import SandboxError, ToolBusy, ToolError
from icrl.runtime.sandbox.result import SandboxResult
from icrl.runtime.tools.sessions import Sessions


def program(code):
    return lambda repl: repl.run(code)


async def test_a_trajectory_keeps_its_variables_and_no_others():
    executor = InProcess()
    sessions = Sessions(executor, limit=2)
    await sessions.run("a", program("x = 1"))
    await sessions.run("b", program("x = 2"))
    assert [(await sessions.run(name, program("x"))).value for name in "ab"] == ["1", "2"]
    await sessions.end("a")
    assert (await sessions.run("a", program("x"))).status == "error"
    await sessions.aclose()
    assert executor.opened == executor.closed == 3


async def test_their_number_is_bounded():
    executor = InProcess()
    sessions = Sessions(executor, limit=1)
    await sessions.run("a", program("x = 1"))
    with pytest.raises(ToolBusy, match="all 1 sessions are taken"):
        await sessions.run("b", program("x = 2"))
    await sessions.end("a")
    await sessions.end("never there")
    assert (await sessions.run("b", program("x = 2"))).status == "ok"


@pytest.mark.parametrize("status", ["timeout", "memory", "output_limit", "crashed"])
async def test_a_killed_program_costs_the_variables(status):
    executor = InProcess({"die": SandboxResult(status=status)})
    sessions = Sessions(executor, limit=1)
    await sessions.run("a", program("x = 1"))
    assert (await sessions.run("a", program("die"))).status == status
    assert executor.opened == executor.closed == 1
    assert (await sessions.run("a", program("x"))).status == "error"


@pytest.mark.parametrize(("status", "value"), [("error", "1"), ("denied", "1")])
async def test_a_failed_program_does_not(status, value):
    sessions = Sessions(InProcess({"fail": SandboxResult(status=status)}), limit=1)
    await sessions.run("a", program("x = 1"))
    await sessions.run("a", program("fail"))
    assert (await sessions.run("a", program("x"))).value == value


@pytest.mark.parametrize("error", [SandboxError("broken"), asyncio.CancelledError()])
async def test_a_broken_session_is_closed(error):
    executor = InProcess({"break": error})
    sessions = Sessions(executor, limit=1)
    with pytest.raises(type(error)):
        await sessions.run("a", program("break"))
    assert executor.opened == executor.closed == 1


async def test_a_program_that_is_refused_before_it_begins_costs_nothing():
    async def refuse(repl):
        raise ToolError("no time")

    sessions = Sessions(InProcess(), limit=1)
    await sessions.run("a", program("x = 1"))
    with pytest.raises(ToolError):
        await sessions.run("a", refuse)
    assert (await sessions.run("a", program("x"))).value == "1"


async def test_programs_of_one_trajectory_run_one_after_another_and_the_end_waits():
    executor, running, order = InProcess(), asyncio.Event(), []
    sessions = Sessions(executor, limit=1)

    def slow(name):
        async def run(repl):
            order.append(f"{name} begins")
            await running.wait()
            order.append(f"{name} ends")
            return await repl.run("x = 1")

        return run

    async with asyncio.TaskGroup() as group:
        for name in ("one", "two"):
            group.create_task(sessions.run("a", slow(name)))
        await asyncio.sleep(0)
        group.create_task(sessions.aclose())
        await asyncio.sleep(0)
        assert (order, executor.closed) == (["one begins"], 0)
        running.set()
    assert order == ["one begins", "one ends", "two begins", "two ends"]
    assert executor.opened == executor.closed  # the one that waited when the end came left nothing open either


async def test_one_session_that_cannot_be_closed_does_not_keep_the_others_open():
    executor = InProcess()
    sessions = Sessions(executor, limit=3)
    for name in "abc":
        await sessions.run(name, program("x = 1"))

    class Broken:
        async def __aexit__(self, *_):
            raise SandboxError("cannot be closed")

    held, sessions._sessions["a"].context = sessions._sessions["a"].context, Broken()
    with pytest.raises(SandboxError, match="cannot be closed"):
        await sessions.aclose()
    assert executor.closed == 2
    await sessions.aclose()
    await held.__aexit__(None, None, None)
