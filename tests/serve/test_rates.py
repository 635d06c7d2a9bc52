"""The rate of each caller."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icrl.serve.config import AdmissionConfig
from icrl.serve.rates import Rates


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_minutes_requests_may_come_at_once_and_then_evenly():
    clock = Clock()
    rates = Rates(3, clock=clock)
    assert [rates.take("a") for _ in range(3)] == [0.0] * 3
    assert rates.take("a") == pytest.approx(20.0)
    clock.now += 19.0
    assert rates.take("a") == pytest.approx(1.0)
    clock.now += 1.0
    assert rates.take("a") == 0.0
    assert rates.take("a") == pytest.approx(20.0)


def test_callers_do_not_share():
    rates = Rates(1, clock=Clock())
    assert rates.take("a") == 0.0
    assert rates.take("b") == 0.0
    assert rates.take("a") == pytest.approx(60.0)


def test_less_than_one_a_minute():
    clock = Clock()
    rates = Rates(0.5, clock=clock)
    assert rates.take("a") == 0.0
    assert rates.take("a") == pytest.approx(120.0)
    clock.now += 120.0
    assert rates.take("a") == 0.0


def test_no_bound_remembers_nobody():
    rates = Rates(None)
    assert all(rates.take(str(n)) == 0.0 for n in range(100))
    assert len(rates) == 0


def test_the_table_is_bounded_and_forgets_whoever_was_heard_of_longest_ago():
    rates = Rates(1, max_callers=3, clock=Clock())
    for caller in "abcd":
        rates.take(caller)
    assert len(rates) == 3
    assert rates.take("d") > 0
    assert rates.take("a") == 0.0


@given(
    per_minute=st.floats(0.1, 500.0),
    gaps=st.lists(st.floats(0.0, 30.0), min_size=1, max_size=80),
)
def test_no_window_of_a_minute_has_more_than_twice_the_rate_and_no_refusal_is_too_long(per_minute, gaps):
    clock, times = Clock(), []
    rates = Rates(per_minute, clock=clock)
    for gap in gaps:
        clock.now += gap
        wait_s = rates.take("a")
        if wait_s == 0.0:
            times.append(clock.now)
        else:
            clock.now += wait_s + 1e-6
            assert rates.take("a") == 0.0
            times.append(clock.now)
    for start in times:
        within = [time for time in times if start <= time < start + 60.0]
        assert len(within) <= 2 * max(1.0, per_minute) + 1


async def test_a_server_refuses_who_asks_too_often(serve):
    client = await serve(["<answer> ok </answer>"], admission=AdmissionConfig(requests_per_minute=2))
    body = {"model": "icrl", "messages": [{"role": "user", "content": "x"}]}
    for _ in range(2):
        assert (await client.post("/v1/chat/completions", json=body)).status == 200
    for path, asked in (("/v1/chat/completions", body), ("/v1/responses", {"input": "x"})):
        refused = await client.post(path, json=asked)
        assert refused.status == 429
        assert 20 < int(refused.headers["Retry-After"]) <= 30
        error = (await refused.json())["error"]
        assert error["type"] == "rate_limit_error"
        assert error["message"] == "you may ask 2 times a minute"
    assert (await client.get("/v1/models")).status == 200
