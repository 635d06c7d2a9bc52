"""What goes wrong around programs: zygotes die, callers give up, loops end, a thousand come at once."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from runtime.sandbox.confinement import children_of, eventually, needs_layers, state_of

from icrl.errors import SandboxError, ToolBusy
from icrl.runtime.sandbox import child as child_module
from icrl.runtime.sandbox import pool as pool_module
from icrl.runtime.sandbox.sandbox import Sandbox

pytestmark = needs_layers


def zygote(box: Sandbox) -> int:
    return box.zygotes["light"]


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def test_a_zygote_that_is_killed_is_replaced():
    async with Sandbox("light", "plain") as box:
        first = zygote(box)
        os.kill(first, signal.SIGKILL)
        assert (await box.run("1 + 1")).value == "2"
        assert zygote(box) != first
        assert state_of(first) == "gone"


async def test_programs_in_flight_survive_the_death_of_their_zygote():
    async with Sandbox("light", "plain", max_concurrency=4) as box:
        first = zygote(box)
        tasks = [asyncio.create_task(box.run(f"import time\ntime.sleep(1.0)\n{n}", timeout_s=30)) for n in range(4)]
        await eventually(lambda: len(children_of(first)) == 4)
        children = children_of(first)
        os.kill(first, signal.SIGKILL)
        assert [r.value for r in await asyncio.gather(*tasks)] == ["0", "1", "2", "3"]
        assert {state_of(pid) for pid in children} <= {"gone", "Z"}, "a child dies with its zygote"


async def test_a_session_that_loses_its_zygote_says_so():
    async with Sandbox("light", "plain") as box, box.session() as repl:
        await repl.run("x = 1")
        os.kill(zygote(box), signal.SIGKILL)
        await eventually(lambda: not box._open._zygotes["light"].alive)
        assert (await repl.run("x")).status == "crashed"
        assert "NameError" in (await repl.run("x")).error


async def test_zygotes_that_keep_dying_are_an_error_and_not_a_loop():
    async with Sandbox("light", "plain") as box:

        async def kill_whatever_forks() -> None:
            while True:
                pid = zygote(box)
                if children_of(pid):
                    os.kill(pid, signal.SIGKILL)
                await asyncio.sleep(0.002)

        killer = asyncio.create_task(kill_whatever_forks())
        with pytest.raises(SandboxError, match="lost 2 processes"):
            await box.run("import time\ntime.sleep(60)", timeout_s=60)
        killer.cancel()


async def test_a_zygote_that_hangs_is_replaced(monkeypatch):
    monkeypatch.setattr(child_module, "_GRACE_S", 2.0)
    async with Sandbox("light", "plain") as box:
        first = zygote(box)
        os.kill(first, signal.SIGSTOP)
        assert (await box.run("1 + 1", timeout_s=20)).value == "2"
        assert zygote(box) != first


async def test_a_zygote_is_replaced_after_so_many_programs_without_a_pause():
    async with Sandbox("light", "plain", forks_per_zygote=6, max_concurrency=3) as box:
        first = zygote(box)
        repl = box.session()
        await repl.run("x = 1")
        results = await asyncio.gather(*(box.run(f"{n}") for n in range(12)))
        assert [r.value for r in results] == [str(n) for n in range(12)]
        await eventually(lambda: zygote(box) != first)
        assert (await repl.run("x")).value == "1", "a session keeps the zygote that it came from"
        assert state_of(first) != "gone"
        await repl.aclose()
        await eventually(lambda: state_of(first) == "gone")


async def test_cancelling_a_run_kills_and_reaps_the_child():
    async with Sandbox("light", "plain") as box:
        task = asyncio.create_task(box.run("while True: pass", timeout_s=60))
        await eventually(lambda: children_of(zygote(box)))
        (child,) = children_of(zygote(box))
        await eventually(lambda: state_of(child) == "R")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert state_of(child) == "gone"


async def test_cancelling_at_any_moment_leaves_nothing():
    async with Sandbox("light", "plain", max_concurrency=2) as box:
        await box.run("1")
        before = descriptors()
        for turns in range(25):
            tasks = [asyncio.create_task(box.run("sum(range(10 ** 5))")) for _ in range(3)]
            for _ in range(turns):
                await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        await eventually(lambda: not children_of(zygote(box)))
        assert (await box.run("1 + 1")).value == "2"
        assert descriptors() == before


async def test_cancelling_the_first_caller_does_not_stop_the_start():
    box = Sandbox("light", "plain")
    first = asyncio.create_task(box.run("1"))
    second = asyncio.create_task(box.run("2"))
    await asyncio.sleep(0.02)
    first.cancel()
    assert (await second).value == "2"
    await box.aclose()


async def test_closing_leaves_no_process_task_or_descriptor():
    before = descriptors()
    box = Sandbox("light", "plain")
    await box.run("1")
    repl = box.session()
    await repl.run("1")
    running = asyncio.create_task(box.run("while True: pass", timeout_s=60))
    await eventually(lambda: len(children_of(zygote(box))) == 2)
    processes = [zygote(box), *children_of(zygote(box))]
    await box.aclose()
    assert (await running).status == "crashed"
    assert [state_of(pid) for pid in processes] == ["gone"] * 3
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert descriptors() == before
    await box.aclose()
    assert (await box.run("2")).value == "2", "it opens again"
    await box.aclose()
    assert descriptors() == before


async def test_closing_while_it_starts_leaves_nothing():
    before = descriptors()
    box = Sandbox("light", "plain")
    run = asyncio.create_task(box.run("1"))
    await asyncio.sleep(0.02)
    await box.aclose()
    with pytest.raises(SandboxError, match="closed while it started"):
        await run
    await eventually(lambda: descriptors() == before)


def test_one_sandbox_serves_one_loop_after_another():
    before = descriptors()
    box = Sandbox("light", "plain")
    repl = box.session()
    assert asyncio.run(box.run("1 + 1")).value == "2"
    assert asyncio.run(repl.run("x = 1")).status == "ok"
    first = zygote(box)
    assert asyncio.run(box.run("1 + 2")).value == "3"
    assert state_of(first) == "gone"
    assert asyncio.run(repl.run("x")).status == "crashed"

    async def close() -> None:
        await repl.aclose()
        await box.aclose()

    asyncio.run(close())
    assert descriptors() == before


async def test_a_full_queue_is_told_at_once():
    async with Sandbox("light", "plain", max_concurrency=1, max_queue=1) as box:
        running = asyncio.create_task(box.run("while True: pass", timeout_s=60))
        await eventually(lambda: children_of(zygote(box)))
        waiting = asyncio.create_task(box.run("1"))
        await asyncio.sleep(0)
        with pytest.raises(ToolBusy, match="1 programs wait already"):
            await box.run("2")
        running.cancel()
        assert (await waiting).value == "1"


async def test_only_so_many_run_at_once():
    async with Sandbox("light", "plain", max_concurrency=2) as box:
        tasks = [asyncio.create_task(box.run("import time\ntime.sleep(0.05)")) for _ in range(6)]
        most = 0
        while not all(task.done() for task in tasks):
            most = max(most, len(children_of(zygote(box))))
            await asyncio.sleep(0.001)
        assert 1 <= most <= 2


async def test_a_thousand_at_once_complete_in_bounded_memory():
    async with Sandbox("light") as box:
        await box.run("1")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        opened = descriptors()
        results = await asyncio.gather(*(box.run(f"print({n})\nsum(range({n}))", timeout_s=30) for n in range(1000)))
        assert [r.value for r in results] == [str(n * (n - 1) // 2) for n in range(1000)]
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024
        assert descriptors() == opened
        assert children_of(zygote(box)) == []


async def test_the_loop_turns_while_programs_run():
    async with Sandbox("light", "plain") as box:
        longest = 0.0

        async def watch() -> None:
            nonlocal longest
            loop = asyncio.get_running_loop()
            while True:
                before = loop.time()
                await asyncio.sleep(0)
                longest = max(longest, loop.time() - before)

        gc.collect()  # or half a second of it may fall into what follows
        watcher = asyncio.create_task(watch())
        flood = "import os\nwhile True: os.write(1, b'x' * 100)"
        await asyncio.gather(*(box.run(code, timeout_s=1.5) for code in [flood, "10 ** (10 ** 9)"] * 4))
        watcher.cancel()
        assert longest < 1.2, "less than a program takes"


async def test_a_start_that_fails_is_tried_again_by_the_next_program(monkeypatch):
    real, calls = pool_module.check, []

    async def check(zygote):
        calls.append(zygote)
        if len(calls) == 1:
            raise SandboxError("not now")
        await real(zygote)

    monkeypatch.setattr(pool_module, "check", check)
    box = Sandbox("light", "plain")
    with pytest.raises(SandboxError, match="not now"):
        await box.run("1")
    assert (await box.run("1")).value == "1"
    assert state_of(calls[0].pid) == "gone"
    await box.aclose()


def test_zygotes_end_with_the_process_that_started_them():
    code = (
        "import asyncio, os, signal\n"
        "from icrl.runtime.sandbox.sandbox import Sandbox\n"
        "async def main():\n"
        "    box = Sandbox('light', 'plain')\n"
        "    await box.run('1')\n"
        "    asyncio.create_task(box.run('while True: pass', timeout_s=600))\n"
        "    await asyncio.sleep(0.2)\n"
        "    print(box._open._zygotes['light'].pid, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "asyncio.run(main())\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(child_module.__file__).parents[3])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    pid = int(done.stdout)
    asyncio.run(eventually(lambda: state_of(pid) in ("gone", "Z")))


def test_nothing_of_the_environment_or_the_descriptors_is_inherited(monkeypatch, tmp_path):
    monkeypatch.setenv("ICRL_SECRET", "canary")
    with (tmp_path / "open").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        look = (
            "import os\n"
            "def has(n):\n    try:\n        os.fstat(n)\n    except OSError:\n        return False\n    return True\n"
            "print(sorted(os.environ), [n for n in range(256) if has(n)])"
        )

        async def main() -> str:
            async with Sandbox("light", "plain") as box:
                return (await box.run(look)).stdout

        names, _, numbers = asyncio.run(main()).partition("] [")
    assert "ICRL_SECRET" not in names
    assert "HOME" not in names
    assert "PATH" not in names
    assert numbers == "0, 1, 2, 3]\n"
