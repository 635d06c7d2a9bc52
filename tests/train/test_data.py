"""What a run learns from, by world and by the user's own files."""

from __future__ import annotations

import json

import pytest

from icrl.errors import ConfigError
from icrl.runtime.settings import EMBEDDED
from icrl.tiny import CODE_HELD_OUT, HELD_OUT
from icrl.tiny.worlds import WORLDS, find_world
from icrl.train.config import TrainConfig
from icrl.train.data import load_data, world_demonstrations, world_tasks
from icrl.train.tasks import load_tasks


@pytest.mark.parametrize("name", ["search", "code"])
def test_a_plain_world_is_its_files(name):
    data = load_data(TrainConfig(world=name))
    assert data.held_out == load_tasks({"search": HELD_OUT, "code": CODE_HELD_OUT}[name])
    assert {t.metadata["world"] for t in data.train} == {name}
    assert {step.tool for d in data.demonstrations for step in d.steps} == set(find_world(name).tools)
    assert len(data.demonstrations) == 8


def test_the_mixed_world_alternates_and_loses_nothing():
    data = load_data(TrainConfig(world="mixed"))
    assert [t.metadata["world"] for t in data.held_out] == ["search", "code"] * 400
    assert len(data.train) == 1168 + 1200
    assert [t.metadata["world"] for t in data.train[:2336]] == ["search", "code"] * 1168
    assert {t.metadata["world"] for t in data.train[2336:]} == {"code"}
    assert [d.steps[0].tool for d in data.demonstrations] == ["search", "python"] * 8


def test_no_two_tasks_of_the_mixed_world_share_an_id():
    tasks = [*world_tasks(WORLDS["mixed"].train), *world_tasks(WORLDS["mixed"].held_out)]
    assert len({t.id for t in tasks}) == len(tasks)


@pytest.mark.parametrize(
    ("world", "tools", "index"),
    [("search", ("search",), EMBEDDED), ("code", ("python",), None), ("mixed", ("search", "python"), EMBEDDED)],
)
def test_settings_name_the_tools_of_the_world(world, tools, index):
    settings = TrainConfig(world=world).settings()
    assert (settings.tools, settings.index) == (tools, index)


def test_tools_can_be_chosen_whatever_the_world():
    assert TrainConfig(world="mixed", tools=("python",)).settings().tools == ("python",)
    assert TrainConfig(tools=()).settings().tools == ()


def test_own_tasks_search_and_replace_the_world(tmp_path):
    path = tmp_path / "tasks.jsonl"
    path.write_text("".join(json.dumps({"question": f"{i}?", "answers": [str(i)]}) + "\n" for i in range(20)))
    config = TrainConfig(tasks=path, index="out", schedule="0:4")
    data = load_data(config)
    assert config.tool_names == ("search",)
    assert (len(data.train), len(data.held_out), data.demonstrations) == (18, 2, ())
    with pytest.raises(ConfigError, match="world: --tasks replaces the world 'code'; give one of the two"):
        TrainConfig(tasks=path, world="code")


def test_a_schedule_that_shows_too_many_names_the_world():
    with pytest.raises(ConfigError, match="shows up to 17 demonstrations, but the world 'mixed' holds 16"):
        load_data(TrainConfig(world="mixed", schedule="17:4"))


def test_demonstrations_of_a_world_take_turns():
    mixed = world_demonstrations(find_world("mixed"))
    assert mixed[::2] == world_demonstrations(find_world("search"))
    assert mixed[1::2] == world_demonstrations(find_world("code"))
