from __future__ import annotations

import asyncio
import threading
from itertools import pairwise

import pytest
import torch
from fake_server import PROMPT, TEXT, FakeServer, said
from watched import until

from icrl.errors import WeightSyncError
from icrl.runtime.engines.pool import EnginePool, PoolConfig
from icrl.trajectory import VersionSpan
from icrl.types import SamplingParams

SETTINGS = {"give_up_s": 5.0, "first_wait_s": 0.001, "longest_wait_s": 0.01, "probe_every_s": 0.01}
PARAMS = SamplingParams(max_tokens=64)


async def opened(*servers, **settings):
    pool = EnginePool(servers, config=PoolConfig(**(SETTINGS | {"abort_grace_s": 0.05} | settings)))
    await pool.start()
    return pool


async def push(pool, version, weights=(("w", 1.0),), mode="in_place"):
    await pool.pause(mode)
    try:
        await pool.update(weights, version)
    finally:
        await pool.resume()


def states(pool):
    return [member.state for member in pool.members]


async def test_all_servers_get_all_weights_of_one_iterable():
    servers = [FakeServer(name) for name in "abc"]
    pool = await opened(*servers)
    await push(pool, 4, iter([("w", 1.0), ("v", 2.0)]))
    assert pool.info.weight_version == 4
    assert all(server.weights == [(4, [("w", 1.0), ("v", 2.0)])] for server in servers)
    assert all(server.calls == ["pause", "update", "resume"] for server in servers)
    await pool.aclose()


async def test_weights_pass_one_server_by_unless_they_are_kept():
    taken = []

    class Taking(FakeServer):
        async def update(self, weights, version):
            taken.append(weights)
            await super().update(weights, version)

    pool = await opened(Taking("a"), keep_weights=False)
    weights = iter([("w", 1.0)])
    await push(pool, 1, weights)
    assert taken == [weights]
    await pool.aclose()


async def test_a_server_that_fails_an_update_is_not_used_until_it_has_the_weights():
    good, bad = FakeServer("good"), FakeServer("bad")
    pool = await opened(good, bad)
    bad.broken.add("update")
    await push(pool, 1)
    assert states(pool) == ["used", "away"]
    assert "bad could not update" in pool.members[1].why
    for i in range(4):
        await pool.generate(PROMPT, PARAMS, request_id=f"{i}")
    assert not bad.requests
    assert pool.info.weight_version == 1
    bad.broken.clear()
    await until(lambda: states(pool) == ["used", "used"])
    assert bad.weights == [(1, [("w", 1.0)])]
    assert bad.calls[-1] == "resume"
    await pool.aclose()


async def test_if_no_server_takes_them_it_is_an_error_and_none_is_used():
    servers = [FakeServer("a"), FakeServer("b")]
    pool = await opened(*servers)
    for server in servers:
        server.broken.add("update")
    with pytest.raises(WeightSyncError, match=r"update to version 1: failed on every server of the pool: a: .*; b: "):
        await push(pool, 1)
    assert pool.info.weight_version == 0
    assert states(pool) == ["away", "away"]
    # What they hold now nobody knows, though they say that it is version 0.
    await until(lambda: states(pool) == ["stale", "stale"])
    assert "weights of which nobody knows" in pool.members[0].why
    for server in servers:
        server.broken.clear()
    await push(pool, 2)
    assert states(pool) == ["used", "used"]
    await pool.aclose()


async def test_a_server_that_was_restarted_gets_the_last_weights_again_as_they_were():
    servers = [FakeServer("a"), FakeServer("b")]
    pool = await opened(*servers)
    tensor = torch.ones(3)
    await push(pool, 7, [("w", tensor)])
    tensor.zero_()  # the trainer's next step
    await servers[1].kill()
    await until(lambda: states(pool) == ["used", "away"])
    servers[1].restart()
    await until(lambda: states(pool) == ["used", "used"])
    version, [(name, value)] = servers[1].weights[-1]
    assert (version, name, value.tolist()) == (7, "w", [1.0, 1.0, 1.0])
    await pool.aclose()


async def test_a_lone_server_killed_in_the_middle_goes_on_with_its_weights():
    server = FakeServer("a", latency_s=0.2)
    pool = await opened(server)
    await push(pool, 3)
    told = []
    asking = asyncio.create_task(pool.generate(PROMPT, PARAMS, request_id="r", on_delta=told.extend))
    await until(lambda: len(told) > 2)
    await server.kill()
    await until(lambda: states(pool) == ["away"])
    server.restart()
    reply = await asking
    assert said(reply) == TEXT
    assert reply.versions == (VersionSpan(version=3, start=0, end=len(TEXT) + 1),)
    assert [version for version, _ in server.weights] == [3, 3]
    await pool.aclose()


async def test_without_kept_weights_it_stays_out_until_the_next_update():
    servers = [FakeServer("a"), FakeServer("b")]
    pool = await opened(*servers, keep_weights=False)
    await push(pool, 7)
    await servers[1].kill()
    await until(lambda: states(pool) == ["used", "away"])
    servers[1].restart()
    await until(lambda: states(pool) == ["used", "stale"])
    why = "has weights of version 0; the pool is at version 7, and those cannot be sent again"
    assert pool.members[1].why == why
    for i in range(4):
        await pool.generate(PROMPT, PARAMS, request_id=f"{i}")
    assert not servers[1].requests
    await push(pool, 8)
    assert states(pool) == ["used", "used"]
    assert servers[1].weights[-1][0] == 8
    await pool.aclose()


@pytest.mark.parametrize("watched", [False, True])
async def test_a_restart_that_nobody_saw_shows_in_the_versions(watched):
    servers = [FakeServer("a"), FakeServer("b")]
    pool = await opened(*servers, probe_every_s=60.0, keep_weights=False)
    await push(pool, 2)

    async def forgetful(ids, params, **options):
        servers[0]._weight_version = 0  # as after a restart between two requests
        return await FakeServer.generate(servers[0], ids, params, **options)

    servers[0].generate = forgetful
    told = []
    reply = await pool.generate(PROMPT, PARAMS, request_id="r", on_delta=told.extend if watched else None)
    # What somebody has seen stays, under its own name; else it was never sampled.
    assert reply.versions == (VersionSpan(version=0 if watched else 2, start=0, end=33),)
    assert not watched or tuple(told) == reply.ids
    assert states(pool) == ["away", "used"]
    assert pool.members[0].why == "samples under version 0 although it had version 2"
    await pool.aclose()


async def test_the_spans_of_a_resumed_request_are_exact_across_an_update():
    a, b = FakeServer("a"), FakeServer("b", latency_s=0.1)
    pool = await opened(a, b, probe_every_s=60.0)
    a.errors.append(10)
    told = []
    asking = asyncio.create_task(pool.generate(PROMPT, PARAMS, request_id="r", on_delta=told.extend))
    await until(lambda: len(told) > 10 or a.requests[1:])
    await push(pool, 1)
    reply = await asking
    assert said(reply) == TEXT
    cuts = [(span.start, span.end) for span in reply.versions]
    assert cuts[0][0] == 0
    assert cuts[-1][1] == len(reply.ids)
    assert all(left[1] == right[0] for left, right in pairwise(cuts))
    assert [span.version for span in reply.versions] in ([0, 1], [0])
    assert reply.versions[0].end >= 10
    await pool.aclose()


@pytest.mark.parametrize("what", ["pause", "resume"])
async def test_a_server_that_does_not_pause_or_resume_is_ejected(what):
    good, bad = FakeServer("good"), FakeServer("bad")
    pool = await opened(good, bad, probe_every_s=60.0)
    bad.broken.add(what)
    await push(pool, 1)
    assert states(pool) == ["used", "away"]
    assert f"bad could not {what}" in pool.members[1].why
    good.broken.add("pause")
    with pytest.raises(WeightSyncError, match="could not pause"):
        await pool.pause()
    await pool.aclose()


async def test_requests_of_a_server_that_failed_an_update_go_elsewhere():
    servers = [FakeServer("a", latency_s=0.2), FakeServer("b", latency_s=0.2)]
    pool = await opened(*servers, probe_every_s=60.0)
    told = []
    asking = asyncio.create_task(pool.generate(PROMPT, PARAMS, request_id="r", on_delta=told.extend))
    await until(lambda: len(told) > 2)
    servers[0].broken.add("update")
    await push(pool, 1)
    reply = await asking
    assert said(reply) == TEXT
    assert [span.version for span in reply.versions] == [0, 1]
    assert tuple(told) == reply.ids
    await pool.aclose()


async def test_a_pause_that_aborts_hands_partials_over():
    pool = await opened(FakeServer("a", latency_s=60.0))
    told = []
    asking = asyncio.create_task(pool.generate(PROMPT, PARAMS, request_id="r", on_delta=told.extend))
    await asyncio.sleep(0.02)
    await pool.pause("abort")
    assert (await asking).finish_reason == "abort"
    await pool.resume()
    await pool.aclose()


async def test_nobody_is_let_in_while_weights_change():
    a, b = FakeServer("a"), FakeServer("b")
    pool = await opened(a, b)
    await b.kill()
    await until(lambda: states(pool) == ["used", "away"])
    await pool.pause()
    b.restart()
    starts, probes = b.starts, a.probes
    await until(lambda: a.probes > probes + 3)
    assert (states(pool), b.starts) == (["used", "away"], starts)
    await pool.update([("w", 1.0)], 1)
    await pool.resume()
    await until(lambda: states(pool) == ["used", "used"])
    assert b.weights == [(1, [("w", 1.0)])]
    await pool.aclose()


# ---- no server is there


@pytest.mark.parametrize("down_at", ["before", "pause", "update", "resume"])
async def test_an_update_waits_for_the_only_server_to_come_back(down_at):
    server = FakeServer("a")
    pool = await opened(server)
    notices = []
    pool.notify(notices.append)
    await push(pool, 1)

    def fall(what):
        act = getattr(server, what)

        async def falling(*args):
            setattr(server, what, act)
            await server.kill()
            await act(*args)

        setattr(server, what, falling)

    if down_at == "before":
        await server.kill()
        await until(lambda: states(pool) == ["away"])
    else:
        fall(down_at)
    pushing = asyncio.create_task(push(pool, 2))
    await until(lambda: states(pool) == ["away"] and not server.up)
    asking = asyncio.create_task(pool.generate(PROMPT, PARAMS, request_id="r"))
    await asyncio.sleep(0.02)
    server.restart()
    await pushing
    reply = await asking
    assert reply.versions == (VersionSpan(version=2, start=0, end=len(TEXT) + 1),)
    assert (states(pool), pool.info.weight_version, server._running.is_set()) == (["used"], 2, True)
    assert [version for version, _ in server.weights] == ([1, 2, 2] if down_at == "resume" else [1, 2])
    waited = [] if down_at == "resume" else ["update to version 2 waits up to 5 s for a server to come back: a: "]
    assert [notice[: len(waited[0])] for notice in notices] == waited
    await pool.aclose()


async def test_the_wait_for_a_server_is_bounded_and_ends_with_the_pool():
    server = FakeServer("a")
    pool = await opened(server, give_up_s=0.05)
    await server.kill()
    with pytest.raises(
        WeightSyncError, match=r"update to version 1: no server of the pool was there to take it for 0\.05 s.*cannot be"
    ):
        await push(pool, 1)
    server.restart()
    await until(lambda: states(pool) == ["used"])  # as it was: nothing was sent
    await push(pool, 2)
    assert (states(pool), pool.info.weight_version) == (["used"], 2)
    await pool.aclose()

    server = FakeServer("a")
    pool = await opened(server, give_up_s=60.0)
    await server.kill()
    pushing = asyncio.create_task(push(pool, 1))
    await until(lambda: states(pool) == ["away"])
    await pool.aclose()
    with pytest.raises(WeightSyncError, match="the pool was closed"):
        await pushing
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_server_that_stands_still_for_a_while_gets_them_afterwards():
    server = FakeServer("a")
    pool = await opened(server, control_timeout_s=0.02, update_timeout_s=0.02, probe_timeout_s=0.02)
    pause, going = server.pause, asyncio.Event()

    async def stand_still(*args):
        await going.wait()
        await pause(*args)

    server.pause = stand_still
    pushing = asyncio.create_task(push(pool, 1))
    await until(lambda: "pause: not done within 0.02 s" in pool.members[0].why)
    going.set()
    await pushing
    assert (states(pool), pool.info.weight_version, server._running.is_set()) == (["used"], 1, True)
    await pool.aclose()


async def test_weights_that_went_by_are_not_sent_again():
    class Falling(FakeServer):
        async def update(self, weights, version):
            list(weights)
            await self.kill()
            self._answer()

    pool = await opened(Falling("a"), keep_weights=False)
    with pytest.raises(WeightSyncError, match="no server lived through it"):
        await push(pool, 1, iter([("w", 1.0)]))
    await pool.aclose()


async def test_who_does_not_pause_finds_a_server_that_came_back_running():
    server = FakeServer("a")
    pool = await opened(server)
    await server.kill()
    await until(lambda: states(pool) == ["away"])
    updating = asyncio.create_task(pool.update([("w", 1.0)], 1))
    server.restart()
    await updating
    assert said(await pool.generate(PROMPT, PARAMS, request_id="r")) == TEXT
    await pool.aclose()


# ---- what else may happen to an update


@pytest.mark.parametrize("keep", [False, True])
async def test_weights_are_gathered_beside_the_loop_and_to_the_end_though_nobody_waits(keep):
    gathered, going = [], threading.Event()

    def weights():
        for name in "ab":
            going.wait(5)
            gathered.append(threading.get_ident())
            yield name, 1.0

    pool = await opened(FakeServer("a"), FakeServer("b"), keep_weights=keep)
    updating = asyncio.create_task(pool.update(weights(), 1))
    await asyncio.sleep(0.02)
    updating.cancel()
    await asyncio.sleep(0.02)
    assert not updating.done()
    going.set()
    await asyncio.gather(updating, return_exceptions=True)
    assert len(gathered) == 2
    assert threading.get_ident() not in gathered
    assert (states(pool), pool.info.weight_version) == (["used", "used"], 0)
    await pool.aclose()


async def test_a_server_that_failed_an_update_gets_nothing_while_others_still_take_it():
    good, bad = FakeServer("good"), FakeServer("bad")
    pool = await opened(good, bad, probe_every_s=60.0)
    bad.broken.add("update")
    going, take = asyncio.Event(), good.update

    async def slow(weights, version):
        await going.wait()
        await take(weights, version)

    good.update = slow
    pushing = asyncio.create_task(push(pool, 1))
    await until(lambda: "update" in bad.calls)
    await until(lambda: states(pool) == ["used", "away"])
    asking = asyncio.create_task(pool.generate(PROMPT, PARAMS, request_id="r"))
    await until(lambda: good.live)
    going.set()
    await pushing
    assert said(await asking) == TEXT
    assert not bad.requests
    await pool.aclose()


async def test_nobody_is_used_after_an_update_that_was_cancelled_until_the_next():
    done, hanging = FakeServer("done"), FakeServer("hanging")
    pool = await opened(done, hanging)
    await push(pool, 1)

    async def hang(weights, version):
        await asyncio.Event().wait()

    hanging.update, take = hang, hanging.update
    pushing = asyncio.create_task(push(pool, 2))
    await until(lambda: done.weights[-1][0] == 2)
    asking = asyncio.create_task(pool.generate(PROMPT, PARAMS, request_id="r"))
    pushing.cancel()
    await asyncio.gather(pushing, return_exceptions=True)
    await until(lambda: states(pool) == ["stale", "stale"])
    hanging.update = take
    assert pool.info.weight_version == 1
    await push(pool, 3)
    assert {span.version for span in (await asking).versions} == {3}
    await pool.aclose()


async def test_a_server_that_hangs_as_it_comes_back_holds_no_other_up():
    a, b = FakeServer("a"), FakeServer("b")
    pool = await opened(a, b)
    await push(pool, 1)

    async def hang(weights, version):
        await asyncio.Event().wait()

    a.update = hang
    await a.kill()
    await b.kill()
    await until(lambda: states(pool) == ["away", "away"])
    a.restart()
    await until(lambda: "pause" in a.calls[-1:])
    b.restart()
    await until(lambda: pool.members[1].state == "used")
    asked = asyncio.create_task(pool.aclose())
    await asked
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.parametrize("lost", [False, True])
async def test_weights_that_somebody_else_sent_are_noticed(lost):
    server = FakeServer("a")
    pool = await opened(server, probe_every_s=60.0)
    await push(pool, 2)
    server._weight_version = 9  # another run's
    if lost:
        server.errors.append(4)
    asking = asyncio.create_task(pool.generate(PROMPT, PARAMS, request_id="r"))
    await until(lambda: states(pool) == ["away"])
    assert "version 9, which this pool never sent it: somebody else" in pool.members[0].why
    await pool._health.let_in(pool.members[0], pool._admit)
    reply = await asking
    assert (said(reply), reply.versions) == (TEXT, (VersionSpan(version=2, start=0, end=len(TEXT) + 1),))
    await pool.aclose()


async def test_a_server_that_hangs_while_it_is_brought_up_to_date_holds_no_update_up():
    a, b = FakeServer("a"), FakeServer("b")
    pool = await opened(a, b)
    await push(pool, 1)
    await b.kill()
    await until(lambda: states(pool) == ["used", "away"])
    hanging = asyncio.Event()

    async def hang(mode="in_place"):
        hanging.set()
        await asyncio.Event().wait()

    b.pause = hang
    b.restart()
    await hanging.wait()
    async with asyncio.timeout(5):
        await push(pool, 2)
    assert (states(pool)[0], pool.info.weight_version) == ("used", 2)
    await pool.aclose()


async def test_a_pool_that_sends_no_weights_lets_somebody_else_train():
    servers = [FakeServer(name, weight_version=1) for name in "ab"]
    pool = await opened(*servers)
    for version in (5, 7):
        for server in servers:
            server._weight_version = version
        reply = await pool.generate(PROMPT, PARAMS, request_id="r")
        assert reply.versions == (VersionSpan(version=version, start=0, end=len(TEXT) + 1),)
        await servers[0].kill()
        await until(lambda: states(pool) == ["away", "used"])
        servers[0].restart()
        servers[0]._weight_version = version
        await until(lambda: states(pool) == ["used", "used"])
        assert pool.info.weight_version == version
    await servers[0].kill()
    await until(lambda: states(pool) == ["away", "used"])
    servers[0].restart()
    await until(lambda: states(pool) == ["stale", "used"])  # with the weights from before
    await pool.aclose()


async def test_servers_that_start_with_different_weights_agree_on_the_newest():
    old, new = FakeServer("old", weight_version=1), FakeServer("new", weight_version=4)
    pool = await opened(old, new)
    assert (states(pool), pool.info.weight_version) == (["stale", "used"], 4)
    await pool.aclose()
