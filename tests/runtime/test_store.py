from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import trajectories

from icrl.errors import DataError
from icrl.runtime.store import TrajectoryStore, read_trajectories
from icrl.trajectory import Segment, StopReason, Trajectory
from icrl.types import Task

PROMPT = Segment(source="prompt", role="query", ids=(1, 2), text="q")
FULL = Path("/dev/full")


def make(name: str) -> Trajectory:
    return Trajectory(id=name, task=Task(query="q"), segments=(PROMPT,), stop_reason=StopReason.END_OF_TURN)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "trajectories.jsonl"


@settings(max_examples=30)
@given(batches=st.lists(st.lists(trajectories(), max_size=2), max_size=3))
def test_what_was_appended_is_read_back(batches, tmp_path_factory):
    path = tmp_path_factory.mktemp("store") / "t.jsonl"
    with TrajectoryStore(path) as store:
        for batch in batches:
            store.append(batch)
            assert store.size_bytes == path.stat().st_size
    assert list(read_trajectories(path)) == [t for batch in batches for t in batch]


def test_what_was_appended_can_be_read_at_once(path):
    with TrajectoryStore(path) as store:
        store.append([make("a")])
        assert [t.id for t in read_trajectories(path)] == ["a"]


def test_a_second_store_goes_on_where_the_first_ended(path):
    for name in ("a", "b"):
        with TrajectoryStore(path) as store:
            store.append([make(name)])
    assert [t.id for t in read_trajectories(path)] == ["a", "b"]


def test_a_resumed_run_forgets_what_came_later(path):
    with TrajectoryStore(path) as store:
        store.append([make("a")])
        kept = store.size_bytes
        store.append([make("b"), make("c")])
    with TrajectoryStore(path, keep_bytes=kept) as store:
        assert store.size_bytes == kept == path.stat().st_size
        store.append([make("d")])
        assert store.size_bytes == path.stat().st_size
    assert [t.id for t in read_trajectories(path)] == ["a", "d"]
    with TrajectoryStore(path, keep_bytes=0) as store:
        assert store.size_bytes == 0
    assert list(read_trajectories(path)) == []


def test_more_cannot_be_kept_than_there_is(path):
    path.write_bytes(b"123")
    with pytest.raises(DataError, match="has 3 bytes, of which 5 shall be kept"):
        TrajectoryStore(path, keep_bytes=5)
    assert path.read_bytes() == b"123"


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"id": "b"', "truncated"),
        (b"\n", "truncated"),
        (b'{"id": 3}\n', r"`\$\.id`"),
        (b"\xff\xfe\n", "malformed"),
    ],
)
def test_a_damaged_line_is_named(line, problem, path):
    with TrajectoryStore(path) as store:
        store.append([make("a")])
    path.write_bytes(path.read_bytes() + line)
    found = read_trajectories(path)
    assert next(found).id == "a"
    with pytest.raises(DataError, match=problem) as caught:
        next(found)
    assert str(caught.value).startswith(f"{path}:2: Trajectory: ")


def test_a_file_that_is_not_there_is_refused(path):
    with pytest.raises(DataError, match=r"cannot be read \(No such file"):
        list(read_trajectories(path))


def test_a_directory_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"none/t\.jsonl: cannot be written \(No such file"):
        TrajectoryStore(tmp_path / "none" / "t.jsonl")


def test_a_read_only_place_is_refused():
    # Not even root may make a file there.
    with pytest.raises(DataError, match=r"/sys/t\.jsonl: cannot be written \("):
        TrajectoryStore(Path("/sys/t.jsonl"))


def test_a_full_disk_is_refused_once():
    def fill() -> None:
        with TrajectoryStore(FULL) as store:
            store.append([make("a")])

    with pytest.raises(DataError, match=r"/dev/full: cannot be written \(No space left on device"):
        fill()


def test_a_full_disk_is_refused_at_the_end_too():
    store = TrajectoryStore(FULL)
    for _ in range(2):
        with pytest.raises(DataError, match="No space left"):
            store.append([make("a")])
    assert store.size_bytes == 0
    with pytest.raises(DataError, match="No space left"):
        store.close()
