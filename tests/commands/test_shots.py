from __future__ import annotations

import pytest

from icrl.commands.shots import take_shots
from icrl.errors import ConfigError, DataError
from icrl.runtime.prompt import load_demonstrations
from icrl.tiny import DEMONSTRATIONS
from icrl.tiny.worlds import find_world


def test_the_first_ones_are_taken_in_order():
    assert take_shots(DEMONSTRATIONS, 3) == load_demonstrations(DEMONSTRATIONS)[:3]


def test_none_need_no_file(tmp_path):
    assert take_shots(tmp_path / "none.yaml", 0) == ()
    with pytest.raises(DataError, match="cannot be read"):
        take_shots(tmp_path / "none.yaml", 1)


@pytest.mark.parametrize(("shots", "problem"), [(-1, "must be >= 0, not -1"), (9, "9 were asked for, but .* holds 8")])
def test_what_cannot_be_taken_is_refused(shots, problem):
    with pytest.raises(ConfigError, match=f"shots: {problem}"):
        take_shots(DEMONSTRATIONS, shots)


def test_a_world_shows_one_of_each_kind_in_turn():
    assert [d.steps[0].tool for d in take_shots(find_world("mixed"), 3)] == ["search", "python", "search"]
    with pytest.raises(ConfigError, match="shots: 17 were asked for, but the world 'mixed' holds 16"):
        take_shots(find_world("mixed"), 17)
