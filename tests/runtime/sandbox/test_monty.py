"""Monty behind the sandbox's interface: results, bounds, sessions, and nothing left behind."""

import asyncio
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icrl.errors import ConfigError, SandboxError, ToolBusy, ToolTimeout
from icrl.runtime.tools.python import PythonTool

pytest.importorskip("pydantic_monty", reason="Monty is not installed: pip install 'icrl[monty]'")

from icrl.runtime.sandbox.monty import MontyExecutor

FOREVER = "print('begun')\nwhile True: pass"


@pytest.fixture
async def monty():
    async with MontyExecutor() as executor:
        yield executor
    await nothing_is_left()


def workers() -> set[int]:
    """Process numbers of our children that run Monty, and are not yet reaped."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = stat.read_text()
        except OSError:
            continue
        name, rest = text[text.index("(") + 1 : text.rindex(")")], text[text.rindex(")") + 2 :].split()
        if name == "monty" and int(rest[1]) == os.getpid():
            found.add(int(stat.parent.name))
    return found


async def nothing_is_left():
    async with asyncio.timeout(10):
        while workers():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("code", "value"),
    [
        ("1 + 1", "2"),
        ("x = [1]\nx  # it", "[1]"),
        ("f = lambda *a: a\nf(\n    1,\n    (2),\n)", "(1, 2)"),
        ("f = lambda *a: a\nf(\n1,\n(2)\n)", None),  # its last line is no expression: the value is not told
        ("f = str\nf(\n10)", None),
        ("(\n'a'\n)", None),
        ("1, 2", "(1, 2)"),
        ("'''\na\n'''", None),
        ("x = '''\na'''", None),
        ("x = 3", None),
        ("None", None),
        ("", None),
        ("# nothing", None),
        ("for i in range(3):\n    i", None),
        ("if 1:\n    2\nelse:\n    3", None),
        ("def f():\n    return 1\n\nf()\n\n", "1"),
        ("return 5", None),
    ],
)
async def test_the_value_is_that_of_a_last_bare_expression(monty, code, value):
    result = await monty.run(code)
    assert (result.status, result.value, result.stdout, result.error) == ("ok", value, "", None)


@settings(max_examples=30)
@given(st.lists(st.sampled_from(["f", "(", ")", "1", "[", "]", "x = 1", "f(", "f([", "'''", "print(2)", "f,"])))
def test_handing_over_the_value_changes_nothing_else(lines):
    async def printed() -> None:
        body = "\n".join(lines)
        async with MontyExecutor() as monty, monty.session() as told, monty.session() as untold:
            start = "seen = []\ndef f(*a):\n    seen.append(a)\n    return a"
            for session in (told, untold):
                await session.run(start)
            first = await told.run(body)
            second = await untold.run(f"{body}\npass")
            assert (first.stdout, first.status) == (second.stdout, second.status)
            assert (await told.run("seen")).value == (await untold.run("seen")).value

    asyncio.run(printed())


async def test_output_of_both_streams_is_kept_in_order(monty):
    result = await monty.run("import sys\nprint('a')\nprint('b', file=sys.stderr)\nprint('c')")
    assert result.stdout == "a\nb\nc\n"
    assert result.wall_s > 0


async def test_a_failure_is_told_like_the_sandbox_tells_it(monty):
    result = await monty.run("def f(x):\n    return 1 / x\nprint('before')\nf(0)")
    assert (result.status, result.stdout) == ("error", "before\n")
    assert result.error == (
        "Traceback (most recent call last):\n"
        '  File "<snippet>", line 4, in <module>\n    f(0)\n'
        '  File "<snippet>", line 2, in f\n    return 1 / x\n'
        "ZeroDivisionError: division by zero"
    )


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("x = (", "SyntaxError"),
        ("import numpy", "ModuleNotFoundError: No module named 'numpy'"),
        ("open('/etc/passwd').read()", "PermissionError"),
        ("class A(int): pass", "NotImplementedError"),
        ("def f(n):\n    f(n + 1)\nf(0)", "more frames]"),
        ("raise ValueError('a' * 100_000)", "characters left out"),
        ("a = '\ud800'", "UnicodeEncodeError"),
    ],
)
async def test_failures_are_results(monty, code, told):
    result = await monty.run(code)
    assert result.status == "error"
    assert told in result.error
    assert len(result.error) < 9_000


async def test_a_syntax_error_that_a_program_raises_does_not_run_it_twice(monty):
    async with monty.session() as session:
        await session.run("n = 0")
        result = await session.run("n += 1\nprint(n)\nraise SyntaxError('mine')")
        assert (result.status, result.stdout) == ("error", "1\n")
        assert (await session.run("n")).value == "1"


@pytest.mark.parametrize("code", [FOREVER, "import time\nprint('begun')\nwhile True: time.sleep(5)"])
async def test_the_deadline_kills_and_keeps_what_was_printed(monty, code):
    result = await monty.run(code, timeout_s=0.3)
    assert (result.status, result.stdout) == ("timeout", "begun\n")
    assert result.error == "stopped: the program was not done after 0.3 s"


async def test_memory_is_bounded_by_the_smaller_bound():
    async with MontyExecutor(max_memory_mb=16) as monty:
        for memory_mb, status in ((1, "memory"), (16, "ok"), (1024, "ok")):
            assert (await monty.run("a = 'a' * 8_000_000", memory_mb=memory_mb)).status == status
        assert (await monty.run("a = 'a' * 20_000_000")).status == "memory"


async def test_output_is_cut_at_the_cap(monty):
    result = await monty.run("while True: print('é' * 1000)")
    assert (result.status, result.truncated) == ("output_limit", True)
    assert 199_900 <= len(result.stdout.encode()) <= 200_000


async def test_large_values_do_not_become_objects_of_this_process(monty):
    result = await monty.run("[0] * 3_000_000")
    assert (result.status, len(result.value), result.truncated) == ("ok", 20_000, True)
    assert (await monty.run("return [0] * 3_000_000")).value is None


async def test_a_worker_that_dies_is_a_crash_and_replaced(monty):
    running = asyncio.create_task(monty.run(FOREVER))
    await asyncio.sleep(0.2)
    for pid in workers():
        os.kill(pid, 9)
    assert (await running).status == "crashed"
    assert (await monty.run("1")).value == "1"


async def test_programs_share_nothing(monty):
    await monty.run("x = 1\nimport math\nmath.pi")
    assert "NameError" in (await monty.run("x")).error


async def test_a_session_keeps_variables_over_failures(monty):
    async with monty.session() as session, session.session() as other:
        await session.run("x = 41")
        assert (await session.run("1 / 0")).status == "error"
        assert (await session.run("x + 1")).value == "42"
        assert (await other.run("x")).status == "error"


async def test_a_session_says_that_its_variables_are_gone(monty):
    async with monty.session() as session:
        await session.run("x = 1")
        result = await session.run(FOREVER, timeout_s=0.2)
        assert (result.status, result.stdout) == ("timeout", "begun\n")
        assert result.error.endswith("The variables of this session are gone.")
        assert "NameError" in (await session.run("x")).error


async def test_a_cancelled_program_loses_the_session_and_the_next_one_is_told(monty):
    async with monty.session() as session:
        await session.run("x = 1")
        running = asyncio.create_task(session.run(FOREVER))
        await asyncio.sleep(0.1)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert "are gone. Start over." in (await session.run("x")).error
        assert (await session.run("2")).value == "2"


async def test_there_are_only_so_many_sessions():
    async with MontyExecutor(max_sessions=1) as monty, monty.session() as first, monty.session() as second:
        await first.run("1")
        with pytest.raises(ToolBusy, match="1 sessions"):
            await second.run("1")
        assert (await monty.run("3")).value == "3"
        await first.aclose()
        assert (await second.run("2")).value == "2"


async def test_closing_ends_programs_and_sessions_and_a_later_one_opens_again():
    monty = MontyExecutor()
    session = monty.session()
    await session.run("x = 1")
    running = [asyncio.create_task(runner.run(FOREVER, timeout_s=60)) for runner in (monty, monty.session())]
    await asyncio.sleep(0.2)
    await monty.aclose()
    for result in await asyncio.gather(*running, return_exceptions=True):
        assert isinstance(result, SandboxError)
    await nothing_is_left()
    assert "are gone" in (await session.run("x")).error
    assert (await monty.run("4")).value == "4"
    await monty.aclose()
    await nothing_is_left()


async def test_many_at_once(monty):
    results = await asyncio.gather(*(monty.run(f"{number} * 2") for number in range(60)))
    assert [result.value for result in results] == [str(2 * number) for number in range(60)]


def test_another_event_loop_gets_other_workers():
    monty = MontyExecutor()

    async def value() -> str | None:
        return (await monty.run("1")).value

    assert [asyncio.run(value()) for _ in range(2)] == ["1", "1"]
    asyncio.run(monty.aclose())


async def test_the_python_tool_uses_it(monty):
    tool = PythonTool(monty, timeout_s=0.3)
    assert await tool({"code": "print(1)\n2"}) == "1\n2"
    with pytest.raises(ToolTimeout, match="begun"):
        await tool({"code": FOREVER})
    assert tool.fingerprint.startswith("Monty 1.")


@pytest.mark.parametrize("setting", ["max_memory_mb", "max_concurrency", "max_sessions"])
def test_settings_are_checked(setting):
    with pytest.raises(ConfigError, match=f"{setting}: must be >= 1, not 0"):
        MontyExecutor(**{setting: 0})


async def test_input_is_refused(monty):
    with pytest.raises(ConfigError, match="stdin"):
        await monty.run("1", stdin="a")
    with pytest.raises(ConfigError, match="timeout_s"):
        await monty.run("1", timeout_s=0)
    assert (await monty.run("#" * 70_000)).status == "denied"
