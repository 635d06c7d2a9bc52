from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from icrl.runtime.engines.placement import Placement, prefix_key


@dataclass
class Place:
    index: int
    busy: int = 0


def placement(**changes):
    return Placement(**({"spill_over": 4, "sessions": 8, "prefixes": 4} | changes))


def choose(where, places, session=None, ids=(), shared=0):
    return where.choose(places, session=session, ids=list(ids), shared_prefix=shared).index


def test_without_session_and_prefix_the_least_busy_gets_it():
    assert choose(placement(), [Place(0, 3), Place(1, 2), Place(2, 5)]) == 1


def test_a_session_stays_however_busy_its_server_is():
    where, places = placement(), [Place(0), Place(1)]
    assert choose(where, places, "s") == 0
    places[0].busy = 1000
    assert choose(where, places, "s") == 0
    assert choose(where, places, "t") == 1


def test_a_session_moves_when_its_server_is_gone_and_stays_there():
    where, places = placement(), [Place(0), Place(1, 9)]
    assert choose(where, places, "s") == 0
    assert choose(where, places[1:], "s") == 1
    assert choose(where, places, "s") == 1


def test_a_prefix_attracts_until_its_holder_is_too_far_ahead():
    where, places = placement(), [Place(0), Place(1), Place(2)]
    chosen = []
    for i in range(12):
        index = choose(where, places, f"{i}", [1, 2, 3, i], 3)
        places[index].busy += 1
        chosen.append(index)
    assert chosen == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]
    assert choose(where, places, "other", [9, 9, 9], 3) == 0
    for place in places:
        place.busy = 0
    assert choose(where, [Place(2, 3), Place(3, 0)], "x", [1, 2, 3], 3) == 2


def test_a_server_that_lost_its_prefixes_does_not_attract():
    where, places = placement(), [Place(0, 1), Place(1, 2)]
    assert choose(where, places, "a", [1], 1) == 0
    places[0].busy = 3
    assert choose(where, places, "b", [1], 1) == 0
    where.forget(0)
    assert choose(where, places, "c", [1], 1) == 1


def test_what_is_remembered_is_bounded():
    where, places = placement(sessions=2, prefixes=2), [Place(0), Place(1, 1)]
    assert choose(where, places, "s") == 0
    places[0].busy = 9
    for other in "tu":
        choose(where, places, other)
    assert choose(where, places, "s") == 1  # forgotten
    for prefix in range(9):
        choose(where, places, None, [prefix], 1)
    assert len(where._prefixes) == 2
    assert len(where._sessions) == 2


def test_prefixes_are_told_apart_by_length_and_content():
    keys = {prefix_key([1, 2, 3], 2), prefix_key([1, 2, 3], 3), prefix_key([1, 4, 3], 2), prefix_key((1, 2, 9), 2)}
    assert len(keys) == 3


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), max_size=80), st.integers(1, 6))
def test_no_holder_gets_far_ahead_of_the_least_busy(requests, spill_over):
    where, places = placement(spill_over=spill_over, sessions=1000), [Place(i) for i in range(3)]
    for number, (prefix, _) in enumerate(requests):
        places[choose(where, places, f"{number}", [prefix], 1)].busy += 1
        loads = [place.busy for place in places]
        assert max(loads) - min(loads) <= spill_over
