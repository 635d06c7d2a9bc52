"""What no client can beat: an exact event simulation of trajectories on an engine that shares its tokens evenly."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """What one trajectory needs, whoever runs it."""

    tokens: tuple[int, ...]
    """Tokens that each turn samples."""
    latencies_s: tuple[float, ...]
    """Seconds that the tool takes after each turn but the last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """An engine that shares its tokens evenly among its requests (processor sharing)."""

    total: float = 40_000
    """Tokens a second, all requests together."""
    each: float = 400
    """Tokens a second of one request at most."""

    def rate(self, requests: int) -> float:
        """Tokens a second of each of so many requests."""
        return min(self.each, self.total / requests)


def ideal_s(courses: Sequence[Course], capacity: Capacity) -> float:
    """Seconds until a client without any overhead of its own has finished every trajectory.

    All requests have the same rate, so that one number, the tokens that each running request has been given since the
    start, says when every one of them is done.
    """
    arriving = [(0.0, number, 0) for number in range(len(courses))]
    running: list[tuple[float, int, int]] = []
    now = given = 0.0
    while arriving or running:
        rate = capacity.rate(max(1, len(running)))
        finished = now + (running[0][0] - given) / rate if running else float("inf")
        if arriving and arriving[0][0] <= finished:
            at, number, turn = heapq.heappop(arriving)
            given, now = given + (at - now) * rate if running else given, at
            heapq.heappush(running, (given + courses[number].tokens[turn], number, turn))
            continue
        given, number, turn = heapq.heappop(running)
        now = finished
        if turn < len(courses[number].latencies_s):
            heapq.heappush(arriving, (now + courses[number].latencies_s[turn], number, turn + 1))
    return now


def bound_s(courses: Sequence[Course], capacity: Capacity) -> float:
    """What not even an engine that knew the future could beat: the longest trajectory, or all tokens."""
    path = max(sum(course.tokens) / capacity.each + sum(course.latencies_s) for course in courses)
    return max(path, sum(sum(course.tokens) for course in courses) / capacity.total)


def lockstep_s(courses: Sequence[Course], capacity: Capacity) -> float:
    """The same for a client that waits for all after every turn and every round of tools."""
    turns = max(len(course.tokens) for course in courses)
    total = 0.0
    for turn in range(turns):
        total += ideal_s([Course(tokens=(c.tokens[turn],), latencies_s=()) for c in courses], capacity)
        total += max((c.latencies_s[turn] for c in courses if turn < len(c.latencies_s)), default=0.0)
    return total
