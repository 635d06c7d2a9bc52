from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icrl.errors import ConfigError, ToolTimeout
from icrl.runtime.tools.web.breaker import MAX_PAUSE_S, Breaker
from icrl.runtime.tools.web.errors import Auth, BadQuery, RateLimited, Unavailable


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock) -> Breaker:
    return Breaker("serper", failures=3, pause_s=30.0, clock=clock)


def call(breaker: Breaker, error: BaseException | None = None, deadline: float = 1e9) -> None:
    with breaker.call(deadline=deadline):
        if error is not None:
            raise error


def fail(breaker: Breaker, error: BaseException | None = None, times: int = 1, **options) -> None:
    for _ in range(times):
        with pytest.raises(BaseException) as caught:  # noqa: PT011
            call(breaker, error or Unavailable("down"), **options)
        assert "left alone" not in str(caught.value)


def test_opens_after_failures_in_a_row(breaker, clock):
    fail(breaker, times=2)
    call(breaker)
    fail(breaker, times=2)
    assert breaker.state == "closed"
    fail(breaker)
    assert breaker.state == "open"
    clock.now += 10
    with pytest.raises(Unavailable, match="serper failed 3 times in a row and is left alone for 20 s") as caught:
        call(breaker)
    assert caught.value.retry_after_s == 20.0


def test_one_call_tries_again_and_its_success_closes(breaker, clock):
    fail(breaker, times=3)
    clock.now += 30
    assert breaker.state == "half open"
    with breaker.call(deadline=1e9), pytest.raises(Unavailable, match="left alone"):
        call(breaker)
    assert breaker.state == "closed"
    call(breaker)


def test_one_call_tries_again_and_its_failure_opens(breaker, clock):
    fail(breaker, times=3)
    clock.now += 30
    fail(breaker)
    assert breaker.state == "open"
    clock.now += 30
    call(breaker)
    assert breaker.state == "closed"


def test_a_probe_that_is_cancelled_makes_room_for_another(breaker, clock):
    fail(breaker, times=3)
    clock.now += 30
    fail(breaker, asyncio.CancelledError())
    assert breaker.state == "half open"
    call(breaker)
    assert breaker.state == "closed"


@pytest.mark.parametrize("error", [BadQuery("no"), Auth("no"), ToolTimeout("no")])
def test_answers_are_no_failures(breaker, error):
    fail(breaker, times=2)
    fail(breaker, error)
    fail(breaker, times=2)
    assert breaker.state == "closed"


def test_a_call_cut_off_at_its_deadline_is_a_failure(breaker, clock):
    fail(breaker, asyncio.CancelledError(), times=5, deadline=clock.now + 1)
    assert breaker.state == "closed"
    fail(breaker, asyncio.CancelledError(), times=3, deadline=clock.now)
    assert breaker.state == "open"


@pytest.mark.parametrize(("asked", "paused"), [(100.0, 100.0), (1.0, 30.0), (None, 30.0), (10_000.0, MAX_PAUSE_S)])
def test_stays_open_as_long_as_the_other_side_asks(breaker, clock, asked, paused):
    fail(breaker, RateLimited("slow down", retry_after_s=asked), times=3)
    clock.now += paused - 0.5
    assert breaker.state == "open"
    clock.now += 0.5
    assert breaker.state == "half open"


def test_limits_are_checked():
    with pytest.raises(ConfigError, match="failures"):
        Breaker("x", failures=0)
    with pytest.raises(ConfigError, match="pause_s"):
        Breaker("x", pause_s=0)


@given(st.lists(st.sampled_from(["ok", "fail", "wait", "cancel"]), max_size=60))
def test_never_more_than_the_limit_of_failures_without_a_pause(steps):
    clock = Clock()
    breaker, row = Breaker("x", failures=3, pause_s=10.0, clock=clock), 0
    for step in steps:
        if step == "wait":
            clock.now += 11
            continue
        state = breaker.state
        error = {"ok": None, "fail": Unavailable("down"), "cancel": asyncio.CancelledError()}[step]
        try:
            call(breaker, error)
        except Unavailable as told:
            if "left alone" in str(told):
                assert state == "open"
                continue
            row += 1
        except asyncio.CancelledError:
            pass
        else:
            row = 0
        assert state != "open"
        assert (breaker.state == "closed") == (row < 3)
