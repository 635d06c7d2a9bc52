from __future__ import annotations

import pytest

from icrl import tiny
from icrl.errors import ConfigError
from icrl.tiny.worlds import WORLDS, find_world


def test_worlds_are_found_by_name():
    assert list(WORLDS) == ["search", "code", "mixed"]
    assert all(find_world(name).name == name for name in WORLDS)


@pytest.mark.parametrize(("name", "tools"), [("search", ("search",)), ("code", ("python",))])
def test_a_plain_world_has_one_tool_and_one_file_of_each_kind(name, tools):
    world = find_world(name)
    assert world.tools == tools
    assert [len(files) for files in (world.train, world.held_out, world.demonstrations)] == [1, 1, 1]


def test_the_mixed_world_is_the_other_two():
    search, code, mixed = (find_world(name) for name in ("search", "code", "mixed"))
    for part in ("train", "held_out", "demonstrations", "tools"):
        assert getattr(mixed, part) == getattr(search, part) + getattr(code, part)
    assert mixed.held_out == (tiny.HELD_OUT, tiny.CODE_HELD_OUT)


def test_every_file_is_shipped():
    assert all(path.is_file() for path in (*WORLDS["mixed"].train, *WORLDS["mixed"].held_out))


def test_a_misspelt_world_is_met_with_the_nearest_name():
    with pytest.raises(ConfigError, match=r"world: 'cod' is not one of search, code, mixed\. Did you mean 'code'\?"):
        find_world("cod")
