from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from fake_server import PROMPT, TEXT, FakeServer, refusal, said
from watched import until

from icrl.errors import ConfigError, EngineError
from icrl.runtime.engines.pool import EnginePool, PoolConfig
from icrl.runtime.engines.protocol import EngineLoad, LostRequest, Server
from icrl.testing import fake_logprob
from icrl.trajectory import VersionSpan
from icrl.types import SamplingParams

QUICK = PoolConfig(
    give_up_s=5.0,
    first_wait_s=0.001,
    longest_wait_s=0.01,
    probe_every_s=0.01,
    probe_timeout_s=1.0,
    abort_grace_s=0.05,
)
PARAMS = SamplingParams(max_tokens=64)


@asynccontextmanager
async def pool_of(*servers, config=QUICK):
    pool = EnginePool(servers, config=config)
    await pool.start()
    try:
        yield pool
    finally:
        await pool.aclose()


async def ask(pool, request_id="r", **options):
    return await pool.generate(PROMPT, options.pop("params", PARAMS), request_id=request_id, **options)


def busy(name="x", status=503):
    return EngineError("busy", engine=name, status=status, retryable=True)


def whole_logprobs():
    return tuple(fake_logprob(token, len(PROMPT) + i) for i, token in enumerate((*TEXT.encode(), 258)))


# ---- one engine out of many


async def test_it_is_a_server_with_what_all_can_do():
    servers = FakeServer("a", context_limit=100), FakeServer("b", context_limit=90, weight_version=3)
    async with pool_of(*servers) as pool:
        assert isinstance(pool, Server)
        info = pool.info
        assert (info.name, info.context_limit, info.weight_version) == ("pool of a, b", 90, 3)
        assert info.capabilities == {"logprobs", "abort", "deltas", "weights"}
    assert all(server.closed for server in servers)


async def test_one_member_keeps_its_name_and_its_reply_is_untouched():
    async with pool_of(server := FakeServer("a")) as pool:
        told = []
        reply = await ask(pool, session="s", shared_prefix=3, on_delta=told.extend)
        assert pool.info.name == "a"
    assert (said(reply), reply.finish_reason, reply.logprobs) == (TEXT, "eos", whole_logprobs())
    assert tuple(told) == reply.ids
    (request,) = server.requests
    assert (request.request_id, request.session, request.shared_prefix) == ("r", "s", 3)


async def test_what_it_cannot_do_without_is_asked_for():
    with pytest.raises(ConfigError, match="needs at least one server"):
        EnginePool([])
    server = FakeServer("a")
    del server.tokenizer
    with pytest.raises(ConfigError, match="pass tokenizer="):
        EnginePool([server])


async def test_it_has_to_be_started_and_not_closed():
    pool = EnginePool([FakeServer("a")], config=QUICK)
    with pytest.raises(EngineError, match="start"):
        pool.info  # noqa: B018
    with pytest.raises(EngineError, match="was not started"):
        await ask(pool)
    await pool.start()
    await pool.start()
    await pool.aclose()
    with pytest.raises(EngineError, match="is closed"):
        await ask(pool)


async def test_servers_that_are_away_at_the_start_come_later():
    here, late = FakeServer("here"), FakeServer("late")
    late.up = False
    async with pool_of(here, late) as pool:
        assert [m.state for m in pool.members] == ["used", "away"]
        assert "cannot be reached" in pool.members[1].why
        late.restart()
        await until(lambda: pool.members[1].state == "used")


async def test_a_pool_without_any_server_says_why():
    a, b = FakeServer("a"), FakeServer("b")
    a.up = b.up = False
    with pytest.raises(EngineError, match=r"no server answers: a: a: cannot be reached; b: b: cannot be reached"):
        async with pool_of(a, b):
            pass


async def test_a_server_that_never_can_be_used_is_an_error_at_once():
    old = FakeServer("old")

    async def start():
        raise EngineError("runs SGLang 0.4", engine="old")

    old.start = start
    with pytest.raises(EngineError, match=r"runs SGLang 0\.4"):
        async with pool_of(FakeServer("a"), old):
            pass


async def test_servers_of_different_models_are_refused():
    class Other(FakeServer):
        @property
        def info(self):
            from dataclasses import replace

            return replace(super().info, vocab_size=77)

    with pytest.raises(ConfigError, match="all have to serve the same model"):
        async with pool_of(FakeServer("a"), Other("b")):
            pass


# ---- placement


async def test_a_session_stays_and_a_prefix_spills_over():
    servers = [FakeServer(name, latency_s=0.02) for name in "ab"]
    async with pool_of(*servers, config=PoolConfig(spill_over=2)) as pool:
        await asyncio.gather(*(ask(pool, f"{i}", session=f"s{i}", shared_prefix=4) for i in range(6)))
        where = {r.session: server.name for server in servers for r in server.requests}
        # Two went to the first holder, then the other one became a holder too, and then whoever is less busy.
        assert sorted(where.values()) == ["a", "a", "a", "b", "b", "b"]
        for i in range(6):
            await ask(pool, f"again {i}", session=f"s{i}", shared_prefix=4)
        again = {r.session: server.name for server in servers for r in server.requests[3:]}
        assert again == where


async def test_loads_are_summed():
    a, b = FakeServer("a"), FakeServer("b")
    a.load, b.load = EngineLoad(running=3, waiting=1, kv_usage=0.5), EngineLoad(running=2, waiting=0, kv_usage=0.1)
    async with pool_of(a, b) as pool:
        assert await pool.probe() == EngineLoad(running=5, waiting=1, kv_usage=0.3)
        await a.kill()
        await b.kill()
        with pytest.raises(EngineError, match="no server answers"):
            await pool.probe()


async def test_a_server_that_others_keep_busy_is_avoided():
    a, b = FakeServer("a"), FakeServer("b")
    a.load = EngineLoad(running=3, waiting=2, kv_usage=0.5)
    async with pool_of(a, b) as pool:
        await ask(pool)
    assert (len(a.requests), len(b.requests)) == (0, 1)


# ---- trying again


@pytest.mark.parametrize("status", [429, 500, 503, None])
async def test_what_may_succeed_later_is_tried_again(status):
    async with pool_of(server := FakeServer("a")) as pool:
        server.errors += [busy(status=status)] * 3
        assert said(await ask(pool)) == TEXT
    assert [r.request_id for r in server.requests] == ["r~3"]


async def test_what_cannot_succeed_is_not():
    async with pool_of(server := FakeServer("a")) as pool:
        server.errors.append(EngineError("no such parameter", engine="a", status=400))
        with pytest.raises(EngineError, match="no such parameter"):
            await ask(pool)
        assert said(await ask(pool)) == TEXT


async def test_two_failures_are_enough_of_a_server():
    a, b = FakeServer("a"), FakeServer("b")
    async with pool_of(a, b) as pool:
        a.errors += [busy()] * 9
        assert said(await ask(pool)) == TEXT
    assert (len(a.errors), len(b.requests)) == (7, 1)


async def test_patience_has_an_end_that_names_every_server():
    a, b = FakeServer("a"), FakeServer("b")
    async with pool_of(a, b, config=PoolConfig(give_up_s=0.05, first_wait_s=0.001, longest_wait_s=0.01)) as pool:
        for server in (a, b):
            server.errors += [busy(server.name)] * 999
        with pytest.raises(
            EngineError, match=r"pool of a, b: nothing but failures for 0\.05 s.*busy.*; its servers: a: is used;"
        ):
            await ask(pool)
        await a.kill()
        await b.kill()
        a.errors.clear()
        b.errors.clear()
        with pytest.raises(EngineError, match=r"a: a: cannot be reached; b: b: cannot be reached"):
            await ask(pool)


async def test_patience_begins_with_the_first_failure():
    settings = PoolConfig(give_up_s=0.5, first_wait_s=0.001, longest_wait_s=0.01)
    async with pool_of(server := FakeServer("a", latency_s=0.6), config=settings) as pool:
        server.errors += [0, busy()]  # lost without a token, after longer than the pool is patient
        assert said(await ask(pool)) == TEXT


async def test_a_request_waits_for_a_server_that_comes_back():
    async with pool_of(server := FakeServer("a")) as pool:
        await server.kill()
        asking = asyncio.create_task(ask(pool))
        await until(lambda: pool.members[0].state == "away")
        server.restart()
        assert said(await asking) == TEXT
        assert server.starts == 2


async def test_a_request_id_is_taken_while_it_is_under_way():
    async with pool_of(FakeServer("a", latency_s=0.02)) as pool:
        first = asyncio.create_task(ask(pool))
        await asyncio.sleep(0)
        with pytest.raises(EngineError, match="'r' is in use"):
            await ask(pool)
        assert said(await first) == TEXT


# ---- resumption


@pytest.mark.parametrize("lost_after", [0, 1, 10, len(TEXT)])
@pytest.mark.parametrize("names", ["a", "ab"])
async def test_a_lost_request_is_resumed_from_what_had_arrived(names, lost_after):
    servers = [FakeServer(name) for name in names]
    async with pool_of(*servers) as pool:
        servers[0].errors.append(lost_after)
        reply = await ask(pool, session="s")
    assert (said(reply), reply.finish_reason, reply.logprobs) == (TEXT, "eos", whole_logprobs())
    assert reply.versions == (VersionSpan(version=0, start=0, end=33),)
    assert reply.prompt_tokens == len(PROMPT)
    resumed = servers[0].requests[-1]
    assert resumed.ids == PROMPT + reply.ids[:lost_after]
    assert resumed.params.max_tokens == PARAMS.max_tokens - lost_after
    assert (resumed.params.seed == PARAMS.seed) == (lost_after == 0)


async def test_losing_it_again_and_again_costs_no_token():
    async with pool_of(server := FakeServer("a"), config=PoolConfig(give_up_s=1.0, first_wait_s=0.001)) as pool:
        server.errors += [1] * len(TEXT)
        reply = await ask(pool)
    assert (said(reply), reply.logprobs) == (TEXT, whole_logprobs())


async def test_a_request_goes_on_where_its_server_was_not_killed():
    servers = [FakeServer(name, latency_s=0.2) for name in "ab"]
    async with pool_of(*servers) as pool:
        told = []
        asking = asyncio.create_task(ask(pool, session="s", on_delta=told.extend))
        await until(lambda: len(told) > 3)
        await servers[0].kill()
        reply = await asking
        assert pool.members[0].state == "away"
        assert tuple(told) == reply.ids
        assert (said(reply), reply.logprobs) == (TEXT, whole_logprobs())
        assert len(servers[1].requests[0].ids) > len(PROMPT) + 3
        assert said(await ask(pool, session="s")) == TEXT  # the session has moved


async def test_a_reply_that_was_complete_is_not_gone_on_with():
    async with pool_of(server := FakeServer("a")) as pool:
        server.errors.append(len(TEXT) + 1)
        reply = await ask(pool)
        assert (said(reply), reply.finish_reason) == (TEXT, "eos")
        server.errors.append(5)
        reply = await ask(pool, params=SamplingParams(max_tokens=5))
        assert (said(reply), reply.finish_reason) == (TEXT[:5], "length")
    assert len(server.requests) == 2


async def test_a_full_context_ends_a_resumed_request():
    async with pool_of(server := FakeServer("a", context_limit=len(PROMPT) + 5)) as pool:
        server.errors.append(5)
        reply = await ask(pool)
    assert (said(reply), reply.finish_reason) == (TEXT[:5], "length")


@pytest.mark.parametrize("lost_after", [0, 3, 11, 12, 15, 17, 18])
async def test_a_stop_string_across_the_seam_ends_the_request(lost_after):
    stop = "thirty-"
    end = TEXT.index(stop) + len(stop)
    async with pool_of(server := FakeServer("a")) as pool:
        server.errors.append(min(lost_after, end))
        told = []
        reply = await ask(pool, params=SamplingParams(max_tokens=64, stop=("never", stop)), on_delta=told.extend)
    assert (said(reply), reply.finish_reason) == (TEXT[:end], "stop")
    assert reply.logprobs == whole_logprobs()[:end]
    assert reply.versions == (VersionSpan(version=0, start=0, end=end),)
    assert tuple(told) == reply.ids


async def test_an_abort_that_nobody_asked_for_is_a_loss():
    async with pool_of(server := FakeServer("a", latency_s=0.1)) as pool:
        asking = asyncio.create_task(ask(pool))
        await until(lambda: "r" in server.live)
        await asyncio.sleep(0.02)
        await server.abort("r")
        reply = await asking
    assert (said(reply), reply.logprobs) == (TEXT, whole_logprobs())
    assert len(server.requests) == 2


# ---- abort


async def test_abort_returns_what_the_server_has():
    async with pool_of(FakeServer("a", latency_s=5.0)) as pool:
        asking = asyncio.create_task(ask(pool))
        await asyncio.sleep(0.2)
        await pool.abort("r")
        await pool.abort("unknown")
        reply = await asking
    assert reply.finish_reason == "abort"
    assert said(reply)
    assert TEXT.startswith(said(reply))


async def test_abort_while_it_is_tried_again_returns_what_had_arrived():
    async with pool_of(server := FakeServer("a"), config=PoolConfig(first_wait_s=60.0, longest_wait_s=60.0)) as pool:
        server.errors += [7, *[busy()] * 99]
        asking = asyncio.create_task(ask(pool))
        await until(lambda: len(server.errors) < 99)
        await pool.abort("r")
        reply = await asking
    assert (said(reply), reply.finish_reason, len(reply.logprobs)) == (TEXT[:7], "abort", 7)


async def test_abort_while_it_waits_for_a_server_returns_what_had_arrived():
    async with pool_of(server := FakeServer("a")) as pool:
        server.errors.append(7)
        server.bad_probes.append(refusal("a"))
        asking = asyncio.create_task(ask(pool))
        server_down = asyncio.create_task(until(lambda: pool.members[0].state == "away"))
        await server_down
        server.up = False
        await pool.abort("r")
        reply = await asking
    assert (said(reply), reply.finish_reason) == (TEXT[:7], "abort")


async def test_a_server_that_ignores_an_abort_is_not_waited_for():
    class Deaf(FakeServer):
        async def abort(self, request_id):
            raise EngineError("no", engine="deaf")

    async with pool_of(Deaf("deaf", latency_s=60.0)) as pool:
        asking = asyncio.create_task(ask(pool))
        await asyncio.sleep(0.01)
        await pool.abort("r")
        reply = await asking
    assert (reply.finish_reason, reply.ids) == ("abort", ())


async def test_closing_ends_what_is_pending():
    async with pool_of(FakeServer("a", latency_s=60.0)) as pool:
        asking = asyncio.create_task(ask(pool))
        await asyncio.sleep(0.01)
    assert (await asking).finish_reason == "abort"


async def test_a_cancelled_request_leaves_nothing_behind():
    async with pool_of(server := FakeServer("a", latency_s=60.0)) as pool:
        asking = asyncio.create_task(ask(pool))
        await until(lambda: server.live)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        assert not server.live
        assert pool.members[0].in_flight == 0
        assert not pool.members[0].requests


# ---- what nobody asked for


@pytest.mark.parametrize("brought", [0, 2, 5, 9])
async def test_what_was_told_is_told_once_whatever_the_server_returns(brought):
    class Confused(FakeServer):
        async def generate(self, ids, params, *, on_delta=None, **options):
            if self.requests:
                return await super().generate(ids, params, on_delta=on_delta, **options)
            whole = await super().generate(ids, params, **options)
            on_delta(whole.ids[:5])
            if not brought:
                raise busy()
            raise LostRequest(
                "it broke",
                engine="a",
                partial=replace(whole, ids=whole.ids[:brought], logprobs=whole.logprobs[:brought], versions=()),
            )

    async with pool_of(Confused("a")) as pool:
        told = []
        reply = await ask(pool, on_delta=told.extend)
    assert (said(reply), tuple(told)) == (TEXT, reply.ids)


async def test_a_request_that_is_aborted_waits_for_no_probe():
    class Hanging(FakeServer):
        async def probe(self):
            self._answer()
            if self.probes:
                await asyncio.Event().wait()
            self.probes += 1
            return self.load

    async with pool_of(server := Hanging("a"), config=replace(QUICK, probe_timeout_s=60.0)) as pool:
        server.errors.append(7)
        asking = asyncio.create_task(ask(pool))
        await until(lambda: pool._health._checks)
        await pool.abort("r")
        async with asyncio.timeout(5):
            reply = await asking
    assert (said(reply), reply.finish_reason) == (TEXT[:7], "abort")
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_asking_for_the_load_ejects_nobody_for_one_bad_answer():
    async with pool_of(server := FakeServer("a"), config=replace(QUICK, probe_every_s=60.0)) as pool:
        server.bad_probes += [EngineError("slow", engine="a")] * 3
        for states in ("used", "used"):
            await pool.probe()
            assert pool.members[0].state == states
        with pytest.raises(EngineError, match="no server answers"):
            await pool.probe()


async def test_the_time_of_a_request_is_that_of_all_its_attempts():
    async with pool_of(server := FakeServer("a")) as pool:

        async def late():
            await asyncio.sleep(0.05)
            raise busy()

        whole = server.generate
        server.generate = lambda *args, **options: (setattr(server, "generate", whole), late())[1]
        assert (await ask(pool)).wall_s >= 0.05


async def test_a_server_that_cannot_be_closed_keeps_no_other_open():
    class Stuck(FakeServer):
        async def aclose(self):
            raise EngineError("cannot leave the group", engine="a")

    class Slow(FakeServer):
        async def aclose(self):
            await asyncio.sleep(0.01)
            await super().aclose()

    pool = EnginePool([Stuck("a"), slow := Slow("b")], config=QUICK)
    await pool.start()
    with pytest.raises(EngineError, match="cannot leave"):
        await pool.aclose()
    assert slow.closed


async def test_closing_while_everything_is_under_way_leaves_no_task():
    class Slow(FakeServer):
        async def update(self, weights, version):
            await asyncio.sleep(60)

    servers = [Slow(name, latency_s=60.0) for name in "abc"]
    pool = EnginePool(servers, config=replace(QUICK, first_wait_s=60.0, longest_wait_s=60.0, give_up_s=60.0))
    await pool.start()
    asking = [asyncio.create_task(ask(pool, f"{i}")) for i in range(6)]
    await until(lambda: all(server.live for server in servers))
    servers[0].errors += [busy()] * 9
    asking.append(asyncio.create_task(ask(pool, "waits")))
    await servers[1].kill()
    servers[1].restart()
    updating = asyncio.create_task(pool.update([("w", 1.0)], 1))
    await asyncio.sleep(0.02)
    async with asyncio.timeout(5):
        await pool.aclose()
        assert {reply.finish_reason for reply in await asyncio.gather(*asking)} == {"abort"}
    updating.cancel()
    await asyncio.gather(updating, return_exceptions=True)
    assert asyncio.all_tasks() == {asyncio.current_task()}
    with pytest.raises(EngineError, match="is closed"):
        await ask(pool)


def test_settings_are_checked():
    with pytest.raises(ConfigError, match=r"PoolConfig\.give_up_s: must be > 0, not 0"):
        PoolConfig(give_up_s=0)
    with pytest.raises(ConfigError, match=r"probe_failures: must be <= probes \(2\)"):
        PoolConfig(probes=2)
    assert PoolConfig(keep_weights=False).keep_weights is False
