from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace

import pytest
from fake_server import FakeServer, refusal
from watched import until

from icrl.errors import DataError, EngineError
from icrl.runtime.engines.health import Health, refused
from icrl.runtime.engines.member import Member, describe
from icrl.runtime.engines.pool_config import PoolConfig


def watched(server, **settings):
    """Return the health of one server, and the states that it took."""
    member = Member(server, 0, probes=5)
    member.turn("used")
    seen = []

    async def admit(member):
        await server.start()
        member.turn("used")

    config = PoolConfig(**({"probe_every_s": 0.004, "probe_timeout_s": 0.5} | settings))
    health = Health([member], config, admit=admit, changed=lambda: seen.append(member.state))
    return health, member, seen


async def test_some_bad_probes_are_forgiven_and_many_are_not():
    health, member, seen = watched(server := FakeServer("a"))
    slow = EngineError("slow", engine="a")
    server.bad_probes += [slow, slow]
    health.start()
    await until(lambda: server.probes >= 8)
    assert (member.state, seen) == ("used", [])
    server.bad_probes += [slow, slow, slow]
    await until(lambda: seen)
    assert seen[0] == "away"
    await until(lambda: member.state == "used")
    assert server.starts == 1
    await health.aclose()


async def test_a_refused_connection_is_enough():
    health, member, _ = watched(server := FakeServer("a"))
    server.up = False
    health.start()
    await until(lambda: member.state == "away")
    assert member.outcomes.count(False) == 0  # it starts anew
    assert "cannot be reached" in describe([member])
    await health.aclose()


async def test_a_failed_request_asks_once_for_all_and_one_bad_answer_is_enough():
    health, member, seen = watched(server := FakeServer("a"))
    await asyncio.gather(*(health.check(member) for _ in range(5)))
    assert (server.probes, member.state) == (1, "used")
    server.bad_probes.append(EngineError("slow", engine="a"))
    await asyncio.gather(*(health.check(member) for _ in range(5)))
    assert (server.probes, seen) == (2, ["away"])
    await health.check(member)
    assert server.probes == 2


async def test_a_probe_that_hangs_counts_as_bad():
    class Hanging(FakeServer):
        async def probe(self):
            await asyncio.Event().wait()

    health, member, _ = watched(Hanging("a"), probe_timeout_s=0.01)
    await health.check(member)
    assert member.why == "did not answer a probe within 0.01 s"


async def test_requests_are_sent_away_from_an_ejected_server():
    class Request:
        why = ""

        def leave(self, why):
            self.why = why

    health, member, _ = watched(FakeServer("a"))
    request = Request()
    member.requests.add(request)
    health.eject(member, "it is wrong")
    assert (request.why, member.state) == ("it is wrong", "away")


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (DataError("it is wrong"), "it is wrong"),
        (TimeoutError(), "did not answer in time when it was to be used again"),
        (KeyError("x"), "KeyError: 'x'"),
    ],
)
async def test_why_a_server_is_not_let_in_is_remembered(error, why, caplog):
    health, member, seen = watched(FakeServer("a"))
    member.turn("away", "before")

    async def fail(member):
        raise error

    await health.let_in(member, fail)
    assert (member.state, member.why, seen) == ("away", why, ["away"])
    assert bool(caplog.records) == isinstance(error, KeyError)


def test_a_refusal_is_found_in_the_chain_of_an_error():
    assert refused(refusal("a"))
    outer = EngineError("x")
    outer.__context__ = refusal("a")
    assert refused(outer)
    assert not refused(TimeoutError())


async def test_a_member_counts_what_others_ask_of_it():
    from icrl.runtime.engines.protocol import EngineLoad

    member = Member(FakeServer("a"), 3, probes=5)
    member.in_flight = 2
    member.note(EngineLoad(running=4, waiting=1, kv_usage=0.1))
    assert (member.foreign, member.busy, member.name) == (3, 5, "a")
    member.note(EngineLoad(running=1, waiting=0, kv_usage=0.1))
    assert member.busy == 2

    class Mute(FakeServer):
        @property
        def info(self):
            raise EngineError("not connected")

    assert Member(Mute("a"), 3, probes=5).name == "member 3"


def test_weights_that_changed_behind_the_pools_back_are_noticed():
    server = FakeServer("a")
    server.facts = SimpleNamespace(weight_version="7", model_path="a")
    member = Member(server, 0, probes=5)
    member.identify(None)
    for name, path, current, tainted in [
        ("7", "a", 7, False),
        ("9", "a", 9, False),
        ("7", "a", 9, False),
        ("default", "a", 7, True),
        ("7", "b", 7, True),  # restarted with another model
        ("9", "an update from disk", 9, False),
    ]:
        server.facts.weight_version, server.facts.model_path, member.tainted = name, path, False
        member.identify(current)
        assert member.tainted == tainted
    server.facts.weight_version, server._weight_version, member.tainted = "12@5f0c21aa", 12, True
    member.identify(9, ours=False)
    assert (member.tainted, member.label) == (False, "12@5f0c21aa")


@pytest.mark.parametrize(("name", "tainted"), [("7@ours", False), ("7@theirs", True), ("7", True), ("6@theirs", False)])
def test_a_server_has_the_current_weights_if_their_name_says_so_and_not_their_number(name, tainted):
    server = FakeServer("a", weight_version=int(name[0]))
    server.facts = SimpleNamespace(weight_version=name, model_path="a")
    server.weight_name = "{}@ours".format
    member = Member(server, 0, probes=5)
    member.identify(7)
    assert member.tainted == tainted


async def test_no_server_is_blamed_for_a_loop_that_was_busy():
    class Slow(FakeServer):
        async def probe(self):
            busy_until = time.monotonic() + 0.2  # somebody keeps the loop from reading the answer
            while time.monotonic() < busy_until:
                pass
            await asyncio.Event().wait()

    health, member, seen = watched(Slow("a"), probe_timeout_s=0.1)
    await health.check(member)
    assert (member.state, seen, member.outcomes.count(False)) == ("used", [], 0)
