from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icrl.errors import ConfigError, DataError
from icrl.runtime.tools import cache as module
from icrl.runtime.tools.cache import ToolCache
from icrl.runtime.tools.keys import CallKey

keys = st.builds(CallKey, st.sampled_from("st"), st.sampled_from(["", "v1", "v2"]), st.sampled_from(["{}", "[]", "1"]))


def key(text: str = "a", fingerprint: str = "v1") -> CallKey:
    return CallKey("search", fingerprint, text)


class Clock:
    now = 1_000_000.0

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


# ---- laws


@given(st.lists(st.tuples(keys, st.none() | st.text(max_size=3)), max_size=30), st.sampled_from([0.001, 1.0]))
def test_a_cache_returns_what_was_put_under_that_key_or_nothing(steps, max_mb):
    cache, truth = ToolCache(max_mb=max_mb), {}
    for place, text in steps:
        if text is not None:
            cache.put(place, text)
            truth[place] = text
        found = cache.get(place)
        assert found is None or found == truth[place]
        if max_mb == 1.0:
            assert found == truth.get(place)


def test_an_answer_of_another_fingerprint_is_never_returned(tmp_path):
    async def play() -> None:
        cache = ToolCache(tmp_path / "c.db")
        cache.put(key(fingerprint="v1"), "old")
        await cache.aclose()
        cache = ToolCache(tmp_path / "c.db")
        assert await cache.find(key(fingerprint="v2")) is None
        assert await cache.find(key(fingerprint="v1")) == "old"
        assert cache.get(key(fingerprint="v1")) == "old"
        await cache.aclose()

    asyncio.run(play())


# ---- time


@pytest.mark.parametrize(
    ("own_s", "tool_s", "age_s", "found"),
    [
        (None, None, 1e9, True),
        (10.0, None, 9.9, True),
        (10.0, None, 10.1, False),
        (None, 5.0, 5.1, False),
        (10.0, 5.0, 7.0, False),
        (5.0, 10.0, 7.0, False),
        (5.0, None, -1.0, False),
    ],
)
async def test_answers_stay_good_for_the_shorter_time(clock, tmp_path, own_s, tool_s, age_s, found):
    cache = ToolCache(tmp_path / "c.db", ttl_s=own_s)
    cache.put(key(), "answer")
    await cache.aclose()
    clock.now += age_s
    assert (cache.get(key(), ttl_s=tool_s) is not None) == found
    assert (await ToolCache(tmp_path / "c.db", ttl_s=own_s).find(key(), ttl_s=tool_s) is not None) == found


# ---- bounds


def test_memory_is_bounded_and_what_was_used_last_stays():
    cache = ToolCache(max_mb=1.0)
    cache.put(key("kept"), "x" * 1000)
    for number in range(3000):
        cache.put(key(str(number)), "y" * 1000)
        assert cache.get(key("kept")) is not None
    assert 500 < len(cache) < 1100
    assert cache.get(key("0")) is None
    assert cache.get(key("2999")) is not None


def test_one_answer_cannot_push_everything_out():
    cache = ToolCache(max_mb=1.0)
    cache.put(key("small"), "s")
    cache.put(key("huge"), "x" * 500_000)
    cache.put(key("y" * 500_000), "huge question")
    assert cache.get(key("small")) == "s"
    assert len(cache) == 1


def test_an_answer_that_is_put_again_counts_once():
    cache = ToolCache(max_mb=1.0)
    for number in range(5000):
        cache.put(key(), f"{number:01000}")
    assert cache.get(key()) == f"{4999:01000}"
    assert len(cache) == 1


async def test_the_file_is_bounded_and_drops_the_oldest(tmp_path):
    cache = ToolCache(tmp_path / "c.db", max_file_mb=0.5)
    for number in range(400):
        cache.put(key(str(number)), "x" * 5000)
        if number % 50 == 0:
            await cache.aclose()
    await cache.aclose()
    assert (tmp_path / "c.db").stat().st_size < 3 << 20
    fresh = ToolCache(tmp_path / "c.db")
    assert await fresh.find(key("0")) is None
    assert await fresh.find(key("399")) == "x" * 5000
    await fresh.aclose()


@pytest.mark.parametrize("options", [{"max_mb": 0}, {"max_file_mb": -1.0}, {"ttl_s": 0.0}])
def test_bounds_are_checked(options):
    with pytest.raises(ConfigError, match=f"{next(iter(options))}: must be > 0"):
        ToolCache(**options)


# ---- the file


async def test_answers_survive_in_the_file_with_every_character(tmp_path):
    cache = ToolCache(tmp_path / "deep" / "c.db")
    texts = {"a": "é😀\x00\x1b", "b": "", "c": "x" * 100_000}
    for name, text in texts.items():
        cache.put(key(name), text)
    await cache.aclose()
    fresh = ToolCache(tmp_path / "deep" / "c.db")
    assert {name: await fresh.find(key(name)) for name in texts} == texts
    assert fresh.get(key("a")) == texts["a"]
    await fresh.aclose()
    assert await fresh.find(key("b")) == ""
    await fresh.aclose()


async def test_memory_alone_needs_no_file():
    cache = ToolCache()
    await cache.open()
    cache.put(key(), "a")
    assert await cache.find(key("b")) is None
    await cache.aclose()
    assert cache.get(key()) == "a"


@pytest.mark.parametrize("kind", ["text", "database", "directory", "newer"])
async def test_another_file_is_refused_and_left_alone(tmp_path, kind):
    path = tmp_path / "c.db"
    if kind == "directory":
        path.mkdir()
    elif kind == "text":
        path.write_text("not a database, but long enough to be read as one" * 100)
    else:
        connection = sqlite3.connect(path)
        connection.execute("CREATE TABLE people (name TEXT)")
        connection.execute(f"PRAGMA application_id = {0x6963726C if kind == 'newer' else 7}")
        connection.execute("PRAGMA user_version = 99")
        connection.commit()
        connection.close()
    before = None if kind == "directory" else path.read_bytes()
    cache = ToolCache(path)
    with pytest.raises(DataError, match=r"c\.db: the cache of tool answers failed"):
        await cache.open()
    assert before is None or path.read_bytes() == before
    # A run that goes on has its answers from memory.
    cache.put(key(), "a")
    assert await cache.find(key("b")) is None
    await cache.aclose()
    assert cache.get(key()) == "a"
    assert cache.faults >= 2


async def test_what_sqlite_cannot_write_is_a_fault_and_no_error(tmp_path):
    cache = ToolCache(tmp_path / "c.db")
    cache.put(key(), "a\ud800b")
    await cache.aclose()
    assert cache.faults == 1
    assert cache.get(key()) == "a\ud800b"


async def test_a_busy_disk_cannot_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_UNWRITTEN", 3)
    cache = ToolCache(tmp_path / "c.db")
    for number in range(10):
        cache.put(key(str(number)), "x")
    await cache.aclose()
    fresh = ToolCache(tmp_path / "c.db")
    assert [await fresh.find(key(str(number))) is not None for number in range(10)] == [True] * 3 + [False] * 7
    await fresh.aclose()


def test_several_processes_share_a_file(tmp_path):
    source = """
        import asyncio, sys
        from pathlib import Path
        from icrl.runtime.tools.cache import ToolCache
        from icrl.runtime.tools.keys import CallKey

        async def main(own):
            cache = ToolCache(Path(sys.argv[1]))
            for number in range(60):
                cache.put(CallKey("search", "v1", f"{own}-{number}"), f"{own} {number}")
                cache.put(CallKey("search", "v1", f"all-{number}"), f"all {number}")
                await cache.find(CallKey("search", "v1", f"all-{60 - number}"))
            await cache.aclose()
            assert cache.faults == 0, cache.faults

        asyncio.run(main(sys.argv[2]))
    """
    path = tmp_path / "c.db"
    environment = {**os.environ, "PYTHONPATH": str(Path(module.__file__).parents[3])}
    running = [
        subprocess.Popen([sys.executable, "-c", textwrap.dedent(source), path, str(own)], env=environment)
        for own in range(4)
    ]
    assert [process.wait(timeout=60) for process in running] == [0] * 4

    async def read() -> list[str | None]:
        cache = ToolCache(path)
        wanted = [f"{own}-{number}" for own in range(4) for number in range(60)]
        found = [await cache.find(key(name)) for name in wanted]
        await cache.aclose()
        return found

    assert asyncio.run(read()) == [f"{own} {number}" for own in range(4) for number in range(60)]
