from __future__ import annotations

import asyncio
import logging
import os
import time
from threading import Event

import pytest

from icrl.serve.backlog import Backlog, LineHandler, LineWriter


@pytest.fixture
def pipe():
    reader, writer = os.pipe()
    with open(reader, "rb", buffering=0) as reading, open(writer, "wb", buffering=0) as writing:
        yield reading, writing


def test_items_are_worked_on_in_order_and_a_failure_is_not_the_end(caplog):
    done = []

    def work(item):
        if item == 3:
            raise ValueError("no threes")
        done.append(item)

    backlog = Backlog(work, name="worker", max_waiting=100)
    assert all(backlog.put(item) for item in range(6))
    assert backlog.close(timeout_s=5.0)
    assert done == [0, 1, 2, 4, 5]
    assert "worker failed" in caplog.text


def test_what_comes_too_fast_is_dropped_and_counted():
    go, done = Event(), []

    def work(item):
        go.wait(10.0)
        done.append(item)

    backlog = Backlog(work, name="worker", max_waiting=2)
    taken = sum(backlog.put(item) for item in range(10))
    assert taken in (2, 3)  # the thread may hold one already
    assert backlog.dropped == 10 - taken
    assert not backlog.close(timeout_s=0.01)
    go.set()
    assert backlog.close(timeout_s=5.0)
    assert len(done) == taken


def test_lines_arrive_whole(pipe):
    reading, writing = pipe
    lines = LineWriter(writing.fileno())
    for i in range(100):
        lines.write(f"line {i} é \udce9")
    assert lines.close()
    assert lines.dropped == 0
    writing.close()
    assert reading.readall().decode().splitlines() == [f"line {i} é \\udce9" for i in range(100)]


async def test_a_pipe_that_nobody_reads_blocks_nobody(pipe):
    reading, writing = pipe
    lines = LineWriter(writing.fileno(), max_waiting=10)
    started = time.monotonic()
    for _ in range(100):
        lines.write("x" * 100_000)
        await asyncio.sleep(0)
    assert time.monotonic() - started < 5.0
    assert lines.dropped >= 50
    assert not await asyncio.to_thread(lines.close, timeout_s=0.05)
    reading.close()  # so the thread can end
    assert await asyncio.to_thread(lines.close, timeout_s=5.0)


def test_a_reader_that_went_away_is_counted(pipe):
    reading, writing = pipe
    reading.close()
    lines = LineWriter(writing.fileno())
    lines.write("hello")
    assert lines.close()
    assert lines.dropped == 1


def test_log_records_become_lines(pipe):
    reading, writing = pipe
    lines = LineWriter(writing.fileno())
    logger = logging.Logger("icrl.serve")
    logger.addHandler(LineHandler(lines))
    logger.warning("%d of them", 3)
    lines.close()
    assert reading.read(1000) == b"WARNING icrl.serve: 3 of them\n"
