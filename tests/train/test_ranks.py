"""A process's place among the trainer's processes."""

import pytest

from icrl.errors import ConfigError
from icrl.train.ranks import Ranks


def test_alone_a_process_leads_and_tells_nobody():
    ranks = Ranks.from_environment()
    assert (ranks.rank, ranks.world, ranks.leads) == (0, 1, True)
    ranks.tell("rows", [])


@pytest.mark.parametrize(("rank", "world"), [("2", "2"), ("-1", "2"), ("x", "2")])
def test_an_impossible_place_is_named(monkeypatch, rank, world):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", world)
    with pytest.raises(ConfigError, match="RANK, WORLD_SIZE"):
        Ranks.from_environment()
