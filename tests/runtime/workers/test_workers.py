from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from watched import until

from icrl.errors import ConfigError
from icrl.runtime.workers import RemoteError, WorkerDied, Workers, pool

LONG = 60.0
OBEYING = "worker_functions:obeying"


@pytest.fixture
async def make() -> AsyncIterator[Callable[..., Workers]]:
    """Make workers that the test's end closes; it may leave no process, thread or descriptor."""
    made: list[Workers] = []
    gc.collect()
    threads, descriptors, children = set(threading.enumerate()), open_files(), processes_of(os.getpid())

    def factory(*arguments: Any, **options: Any) -> Workers:
        made.append(Workers(*(arguments or (OBEYING,)), **options))
        return made[-1]

    yield factory
    for workers in made:
        await workers.aclose()
    await asyncio.get_running_loop().shutdown_default_executor()
    assert set(threading.enumerate()) == threads
    assert open_files() == descriptors
    assert processes_of(os.getpid()) == children


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def processes_of(parent: int) -> set[int]:
    """Children of a process, zombies included."""
    listed = Path(f"/proc/{parent}/task").glob("*/children")
    return {int(child) for path in listed for child in path.read_text().split()}


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


async def pid_in(path: Path) -> int:
    await until(lambda: path.exists() and path.read_text())
    return int(await asyncio.to_thread(path.read_text))


@pytest.mark.parametrize("value", [None, 7, "ü", b"\0\xff", [1, [2.5, {"a": None}]], "x" * 3_000_000])
async def test_requests_and_replies_arrive_whole(make, value):
    assert await make().run(["echo", value], timeout_s=LONG) == value


async def test_a_process_keeps_its_state_and_answers_in_order(make):
    workers = make(OBEYING, 10)
    counts = await asyncio.gather(*(workers.run(["count", None], timeout_s=LONG) for _ in range(20)))
    assert counts == list(range(11, 31))


async def test_requests_share_the_processes(make):
    before = processes_of(os.getpid())
    workers = make(processes=2)
    await asyncio.gather(*(workers.run(["sleep", 0.3], timeout_s=LONG) for _ in range(2)))
    pids = set(await asyncio.gather(*(workers.run(["pid", None], timeout_s=LONG) for _ in range(6))))
    # A quick process may answer all; there are never more of them than were asked for.
    assert pids <= processes_of(os.getpid()) - before
    assert len(processes_of(os.getpid()) - before) <= 2


async def test_nothing_starts_before_it_is_needed_and_one_process_serves_one_caller(make):
    before = processes_of(os.getpid())
    workers = make(processes=8)
    assert processes_of(os.getpid()) == before
    for _ in range(3):
        await workers.run(["echo", 1], timeout_s=LONG)
    assert len(processes_of(os.getpid()) - before) == 1


async def test_a_process_that_hangs_is_killed_and_replaced(make, tmp_path):
    workers = make()
    first = await workers.run(["pid", None], timeout_s=LONG)
    with pytest.raises(TimeoutError, match=r"worker: no answer within 0\.2 s"):
        await workers.run(["hang", str(tmp_path / "pid")], timeout_s=0.2)
    await until(lambda: not alive(first))
    assert await workers.run(["pid", None], timeout_s=LONG) != first


async def test_what_a_process_started_dies_with_it(make, tmp_path):
    workers = make()
    grandchild = await workers.run(["another", str(tmp_path / "mark")], timeout_s=LONG)
    assert alive(grandchild)
    with pytest.raises(TimeoutError):
        await workers.run(["sleep", 60], timeout_s=0.1)
    await until(lambda: not alive(grandchild))


async def test_cancelling_kills(make, tmp_path):
    workers = make()
    task = asyncio.create_task(workers.run(["hang", str(tmp_path / "pid")], timeout_s=LONG))
    pid = await pid_in(tmp_path / "pid")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: not alive(pid))
    assert await workers.run(["echo", "next"], timeout_s=LONG) == "next"


async def test_waiting_counts_and_costs_nobody_a_process(make, tmp_path):
    workers = make()
    busy = asyncio.create_task(workers.run(["hang", str(tmp_path / "pid")], timeout_s=LONG))
    pid = await pid_in(tmp_path / "pid")
    with pytest.raises(TimeoutError):
        await workers.run(["echo", 1], timeout_s=0.05)
    dropped = asyncio.create_task(workers.run(["echo", 2], timeout_s=LONG))
    patient = asyncio.create_task(workers.run(["echo", 3], timeout_s=LONG))
    await asyncio.sleep(0)
    dropped.cancel()
    assert alive(pid)
    busy.cancel()
    assert await patient == 3
    assert dropped.cancelled()
    with pytest.raises(asyncio.CancelledError):
        await busy


async def test_a_place_that_reaches_somebody_who_just_left_is_passed_on(make, tmp_path):
    workers = make()
    first = asyncio.create_task(workers.run(["hang", str(tmp_path / "pid")], timeout_s=LONG))
    await pid_in(tmp_path / "pid")
    second = asyncio.create_task(workers.run(["echo", 2], timeout_s=LONG))
    await asyncio.sleep(0)
    first.cancel()
    # Runs between the moment that the second request is given the place and the one that it wakes up.
    asyncio.get_running_loop().call_soon(second.cancel)
    for task in (first, second):
        with pytest.raises(asyncio.CancelledError):
            await task
    assert await workers.run(["echo", 3], timeout_s=LONG) == 3


@pytest.mark.parametrize(
    ("deed", "reason"),
    [
        (["exit", 3], "closed its end .*exit code 3"),
        (["kill", None], "closed its end .*SIGKILL"),
        (["leave", 0], "closed its end"),
        (["lie", None], "announced a reply of 1000000000000 bytes"),
        (["garble", None], "sent something that is no reply"),
    ],
)
async def test_a_process_that_dies_or_misbehaves_is_reported_and_replaced(make, deed, reason):
    workers = make()
    with pytest.raises(WorkerDied, match=f"worker: the process {reason}"):
        await workers.run(deed, timeout_s=LONG)
    assert await workers.run(["echo", 1], timeout_s=LONG) == 1


async def test_a_process_that_died_while_idle_costs_no_request(make):
    workers = make()
    pid = await workers.run(["pid", None], timeout_s=LONG)
    os.kill(pid, signal.SIGKILL)
    await until(lambda: not alive(pid))
    assert await workers.run(["echo", 1], timeout_s=LONG) == 1


async def test_an_exception_is_carried_and_the_process_lives_on(make):
    workers = make()
    pid = await workers.run(["pid", None], timeout_s=LONG)
    with pytest.raises(RemoteError, match="KeyError: 'Größe'") as caught:
        await workers.run(["raise", "Größe"], timeout_s=LONG)
    assert (caught.value.kind, caught.value.message) == ("KeyError", "'Größe'")
    with pytest.raises(RemoteError, match="TypeError: Encoding objects of type object"):
        await workers.run(["strange", None], timeout_s=LONG)
    assert await workers.run(["pid", None], timeout_s=LONG) == pid


async def test_a_reply_that_is_too_long_is_an_error_and_not_sent(make):
    with pytest.raises(RemoteError, match=r"ValueError: the reply has \d+ bytes, more than"):
        await make().run(["bytes", 65 * 2**20], timeout_s=LONG)


async def test_memory_is_bounded(make):
    workers = make(memory_mb=300)
    with pytest.raises(RemoteError, match="MemoryError"):
        await workers.run(["bytes", 400 * 2**20], timeout_s=LONG)
    assert await workers.run(["echo", 1], timeout_s=LONG) == 1


async def test_a_factory_that_raises_or_dies_tells_every_caller(make):
    refusing, dying = make("worker_functions:refusing", "no disk"), make("worker_functions:dying")
    for _ in range(2):
        with pytest.raises(RemoteError, match="ValueError: no disk"):
            await refusing.run(None, timeout_s=LONG)
        with pytest.raises(WorkerDied, match="exit code 3"):
            await dying.run(None, timeout_s=LONG)
    with pytest.raises(RemoteError, match=r"AttributeError: .*nothing"):
        await make("worker_functions:nothing").run(None, timeout_s=LONG)


async def test_a_slow_start_outlasts_the_request_that_caused_it(make):
    workers, none = make("worker_functions:slow", 0.5), processes_of(os.getpid())
    with pytest.raises(TimeoutError):
        await workers.run(1, timeout_s=0.1)
    await until(lambda: processes_of(os.getpid()) != none)
    before = processes_of(os.getpid())
    assert await workers.run(2, timeout_s=LONG) == 2
    assert processes_of(os.getpid()) == before


async def test_a_start_that_never_ends_is_ended(make, monkeypatch):
    monkeypatch.setattr(pool, "START_TIMEOUT_S", 0.2)
    with pytest.raises(WorkerDied, match=r"did not start within 0\.2 s"):
        await make("worker_functions:slow", 60).run(1, timeout_s=LONG)


async def test_closing_tells_those_who_wait_and_a_later_request_starts_anew(make, tmp_path):
    workers = make()
    busy = asyncio.create_task(workers.run(["hang", str(tmp_path / "pid")], timeout_s=LONG))
    pid = await pid_in(tmp_path / "pid")
    waiting = asyncio.create_task(workers.run(["echo", 1], timeout_s=LONG))
    await asyncio.sleep(0)
    await workers.aclose()
    assert not alive(pid)
    for task in (busy, waiting):
        with pytest.raises(WorkerDied, match="closed"):
            await task
    assert await workers.run(["echo", 2], timeout_s=LONG) == 2


@pytest.mark.parametrize("delay_s", [0.0, 0.002, 0.05])
async def test_closing_during_a_start_leaves_nothing(make, delay_s):
    workers = make("worker_functions:slow", 60)
    task = asyncio.create_task(workers.run(1, timeout_s=LONG))
    await asyncio.sleep(delay_s)
    await workers.aclose()
    with pytest.raises(WorkerDied, match="closed"):
        await task


def test_one_loop_after_another():
    workers = Workers(OBEYING)

    async def first() -> int:
        return await workers.run(["pid", None], timeout_s=LONG)

    async def cut_off() -> None:
        asyncio.create_task(workers.run(["sleep", 60], timeout_s=LONG))  # noqa: RUF006
        asyncio.create_task(workers.run(["echo", 1], timeout_s=LONG))  # noqa: RUF006
        await asyncio.sleep(0.05)

    async def last() -> int:
        pid = await workers.run(["pid", None], timeout_s=LONG)
        await workers.aclose()
        return pid

    pid = asyncio.run(first())
    assert asyncio.run(first()) == pid
    asyncio.run(cut_off())
    assert asyncio.run(last()) != pid


async def test_secrets_and_descriptors_stay_here(make, monkeypatch, tmp_path):
    monkeypatch.setenv("API_KEY", "secret")
    with (tmp_path / "file").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        workers = make()
        assert "API_KEY" not in await workers.run(["environment", None], timeout_s=LONG)
        # Three standard ones, the connection, and the directory that is being listed.
        assert await workers.run(["open", None], timeout_s=LONG) == ["0", "1", "2", "3", "4"]
    assert await workers.run(["print", "not a reply"], timeout_s=LONG) == ""


def test_workers_die_with_us(tmp_path):
    script = tmp_path / "owner.py"
    script.write_text(
        textwrap.dedent("""
        import asyncio, sys
        from icrl.runtime.workers import Workers

        async def main():
            workers = Workers("worker_functions:obeying", processes=2)
            print(await workers.run(["pid", None], timeout_s=60), flush=True)
            await workers.run(["hang", sys.argv[1]], timeout_s=60)

        asyncio.run(main())
        """)
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, str(script), str(tmp_path / "pid")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as owner:
        pid = int(owner.stdout.readline())
        asyncio.run(pid_in(tmp_path / "pid"))
        assert alive(pid)
        owner.kill()
    asyncio.run(until(lambda: not alive(pid)))


@pytest.mark.parametrize("options", [{"processes": 0}, {"memory_mb": 0}])
def test_settings_are_checked(options):
    with pytest.raises(ConfigError, match=f"{next(iter(options))}: must be >= 1, not 0"):
        Workers(OBEYING, **options)
