from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest
from watched import until

from icrl.runtime.tools.outbox import Outbox
from icrl.runtime.tools.threads import Threads


class Disk:
    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.fails = False
        self.go = threading.Event()
        self.go.set()

    def store(self, batch: Sequence[int]) -> None:
        assert threading.current_thread() is not threading.main_thread()
        self.go.wait(5)
        if self.fails:
            raise OSError("full")
        self.batches.append(list(batch))

    @property
    def items(self) -> list[int]:
        return [item for batch in self.batches for item in batch]


@pytest.fixture
def disk() -> Disk:
    return Disk()


async def test_everything_is_written_in_order_and_in_few_batches(disk):
    threads = Threads(name="disk", limit=1)
    outbox: Outbox[int] = Outbox(disk.store, threads=threads)
    disk.go.clear()
    for item in range(50):
        outbox.put(item)
        await asyncio.sleep(0)
    disk.go.set()
    await outbox.flush()
    assert disk.items == list(range(50))
    assert len(disk.batches) <= 3
    assert len(outbox) == 0
    await outbox.flush()
    await threads.aclose()


async def test_a_failure_reaches_whoever_comes_next(disk):
    threads = Threads(name="disk", limit=1)
    outbox: Outbox[int] = Outbox(disk.store, threads=threads)
    disk.fails = True
    outbox.put(1)
    writer = outbox._writer
    assert writer is not None
    await until(writer.done)
    with pytest.raises(OSError, match="full"):
        outbox.put(2)
    with pytest.raises(OSError, match="full"):
        await outbox.flush()
    await threads.aclose()


def test_what_the_end_of_a_loop_interrupts_is_written_by_the_next(disk):
    threads = Threads(name="disk", limit=1)
    outbox: Outbox[int] = Outbox(disk.store, threads=threads)
    disk.go.clear()

    async def leave() -> None:
        for item in range(3):
            outbox.put(item)
        await asyncio.sleep(0)

    async def finish() -> None:
        disk.go.set()
        await outbox.flush()
        await threads.aclose()

    asyncio.run(leave())
    asyncio.run(finish())
    assert set(disk.items) == {0, 1, 2}
