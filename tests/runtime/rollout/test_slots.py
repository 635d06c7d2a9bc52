from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from icrl.runtime.rollout.slots import Slots


@dataclass
class Waiting:
    order: int
    members: deque[int]

    @property
    def waits(self) -> bool:
        return bool(self.members)


def test_the_oldest_group_is_served_first():
    slots = Slots[Waiting](10)
    old, young = Waiting(0, deque([0, 1])), Waiting(1, deque([0]))
    slots.queue(young)
    slots.queue(old)
    served = []
    while (group := slots.take()) is not None:
        served.append((group.order, group.members.popleft()))
    assert served == [(0, 0), (0, 1), (1, 0)]
    # A member that is made anew goes before a younger group.
    young.members.append(1)
    slots.queue(young)
    old.members.append(2)
    slots.queue(old)
    assert slots.take() is old


def test_a_lower_limit_ends_nothing_and_begins_nothing():
    slots = Slots[Waiting](2)
    slots.queue(Waiting(0, deque(range(9))))
    assert [slots.take() is None for _ in range(3)] == [False, False, True]
    slots.limit = 1
    slots.free()
    assert slots.take() is None
    slots.free()
    assert slots.take() is not None


@given(
    limit=st.integers(1, 5),
    groups=st.lists(st.integers(0, 4), max_size=6),
    frees=st.lists(st.booleans(), max_size=40),
)
def test_places_are_never_overbooked_and_nobody_is_forgotten(limit, groups, frees):
    slots = Slots[Waiting](limit)
    queued = [Waiting(order, deque(range(members))) for order, members in enumerate(groups)]
    for group in queued:
        slots.queue(group)
    served = 0
    for free in frees:
        if free and slots.used:
            slots.free()
        group = slots.take()
        if group is not None:
            group.members.popleft()
            served += 1
        assert 0 <= slots.used <= limit
        assert (group is None) == (slots.used == limit or not any(g.waits for g in queued)) or group is not None
    while slots.used:
        slots.free()
        while (group := slots.take()) is not None:
            group.members.popleft()
            served += 1
    if any(group.waits for group in queued):  # nothing was ever taken
        assert served == 0
    else:
        assert served == sum(groups)
