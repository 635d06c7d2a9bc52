from __future__ import annotations

import asyncio
import logging

import pytest

from icrl.errors import ConfigError
from icrl.runtime.agent import Agent
from icrl.serve import service as module
from icrl.serve.ask import Ask
from icrl.serve.config import AdmissionConfig
from icrl.serve.problem import Problem
from icrl.serve.service import Service
from icrl.testing import EchoTool, HangingTool, ScriptedEngine
from icrl.trajectory import StopReason
from icrl.types import Message, SamplingParams

ASK = Ask(messages=(Message(role="user", content="hi"),))


class Opener:
    """Makes agents with an engine and a tool of their own, and remembers them."""

    def __init__(self, replies=("<answer> yes </answer>",), *, tool=EchoTool, **engine):
        self.replies, self.tool, self.engine = replies, tool, engine
        self.tools, self.engines = [], []

    def __call__(self):
        self.tools.append(self.tool())
        self.engines.append(ScriptedEngine(self.replies, **self.engine))
        return Agent(self.engines[-1], tools=[self.tools[-1]])


class StuckTool(EchoTool):
    """Cannot be closed."""

    async def aclose(self):
        raise OSError("no way")


async def started(opener, **admission):
    service = Service(opener, AdmissionConfig(**admission))
    await service.start()
    return service


async def answer(service, caller="me"):
    async with service.admitted(caller) as lease:
        return await lease.execute(lease.prepare(ASK))


async def until(holds):
    async with asyncio.timeout(5):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0)


async def test_it_is_ready_once_the_model_said_a_token():
    opener = Opener()
    service = Service(opener, AdmissionConfig())
    assert (service.state, service.agent) == ("starting", None)
    with pytest.raises(Problem, match="the server is starting"):
        await answer(service)
    await service.start()
    assert service.state == "ready"
    (request,) = opener.engines[0].requests
    assert (request.params.max_tokens, request.params.temperature) == (1, 0.0)
    assert (await answer(service)).answer == "yes"
    await service.aclose()
    assert (service.state, opener.tools[0].closed) == ("closed", 1)


async def test_a_model_that_says_nothing_is_not_ready(monkeypatch):
    opener = Opener([])
    service = Service(opener, AdmissionConfig())
    with pytest.raises(ConfigError, match=r"^model: does not answer \(EngineError: scripted: the script has 0 replies"):
        await service.start()
    assert service.state == "starting"
    assert opener.tools[0].closed == 1
    monkeypatch.setattr(module, "WARM_UP_TIMEOUT_S", 0.01)
    slow = Opener(["never"], latency_s=60.0)
    with pytest.raises(ConfigError, match=r"^model: said nothing within 0\.01 s"):
        await Service(slow, AdmissionConfig()).start()


async def test_a_reload_closes_the_old_agent_after_its_last_lease():
    opener = Opener()
    service = await started(opener)
    async with service.admitted("me") as old:
        run = old.prepare(ASK)
        await service.reload()
        await asyncio.sleep(0.01)
        assert opener.tools[0].closed == 0
        assert service.agent is not old.agent
        assert (await old.execute(run)).answer == "yes"
        assert len(opener.engines[1].requests) == 1  # the warm-up
        await answer(service)
        assert len(opener.engines[1].requests) == 2
    await until(lambda: opener.tools[0].closed == 1)
    assert (service.reloads, opener.tools[1].closed) == (1, 0)
    await service.aclose()
    assert [tool.closed for tool in opener.tools] == [1, 1]


async def test_a_model_that_cannot_be_opened_keeps_the_old_one():
    opener = Opener()
    service = await started(opener)
    before = service.agent
    opener.replies = []
    with pytest.raises(ConfigError, match="does not answer"):
        await service.reload()
    assert (service.state, service.agent, service.reloads) == ("ready", before, 0)
    assert [tool.closed for tool in opener.tools] == [0, 1]
    assert (await answer(service)).answer == "yes"
    await service.aclose()


async def test_a_model_that_is_loaded_too_late_is_closed_again():
    opener = Opener()
    service = await started(opener)
    opener.engine = {"latency_s": 0.05}
    reloading = asyncio.create_task(service.reload())
    await until(lambda: len(opener.tools) == 2)
    await service.drain(1.0)
    await service.aclose()
    with pytest.raises(Problem, match="the server is closed"):
        await reloading
    assert [tool.closed for tool in opener.tools] == [1, 1]


async def test_reloads_come_one_after_the_other():
    opener = Opener()
    service = await started(opener)
    await asyncio.gather(service.reload(), service.reload())
    assert service.reloads == 2
    await service.aclose()
    assert [tool.closed for tool in opener.tools] == [1, 1, 1]


async def test_an_agent_that_cannot_be_closed_breaks_nothing(caplog):
    opener = Opener(tool=StuckTool)
    service = await started(opener)
    await service.reload()
    assert (await answer(service)).answer == "yes"
    await service.aclose()
    assert "a model was not closed cleanly" in caplog.text


async def test_draining_refuses_new_requests_and_finishes_those_that_wait():
    opener = Opener(latency_s=0.05)
    service = await started(opener, max_running=1)
    asked = [asyncio.create_task(answer(service)) for _ in range(3)]
    await until(lambda: service.waiting == 2)
    draining = asyncio.create_task(service.drain(10.0))
    await asyncio.sleep(0)
    assert (service.state, service.running) == ("draining", 3)
    with pytest.raises(Problem, match="the server is draining") as refused:
        await answer(service)
    assert (refused.value.status, refused.value.retry_after_s) == (503, 1.0)
    await draining
    assert [task.result().answer for task in asked] == ["yes"] * 3
    await service.aclose()


async def test_what_exceeds_the_grace_period_is_ended_with_what_it_has(caplog):
    opener = Opener(["<hang> <text>x</text> </hang>"], tool=HangingTool)
    service = await started(opener, max_running=1)
    first, second = [asyncio.create_task(answer(service)) for _ in range(2)]
    await until(lambda: opener.tools[0].calls)
    await service.drain(0.01)
    assert service.state == "ending"
    trajectory = await first
    assert (trajectory.stop_reason, len(trajectory.turns)) == (StopReason.ABORTED, 1)
    assert opener.tools[0].cancellations == 1
    with pytest.raises(Problem, match="the server is ending"):
        await second
    assert "2 requests did not finish within 0.01 s" in caplog.text
    await service.aclose()


async def test_a_run_that_begins_after_the_cut_ends_at_once():
    service = await started(Opener())
    async with service.admitted("me") as lease:
        run = lease.prepare(ASK)
        service.cut()
        assert (await lease.execute(run)).stop_reason is StopReason.ABORTED
    await service.drain(1.0)
    await service.aclose()


async def test_a_cut_ends_the_waiting_of_drain():
    service = await started(Opener(["<hang> <text>x</text> </hang>"], tool=HangingTool))
    asked = asyncio.create_task(answer(service))
    await until(lambda: service.live)
    draining = asyncio.create_task(service.drain(3600.0))
    await asyncio.sleep(0)
    service.cut()
    await asyncio.wait_for(draining, 5.0)
    assert (await asked).stop_reason is StopReason.ABORTED
    await service.aclose()


async def test_slots_queue_and_shares_are_bounded():
    service = await started(
        Opener(["<hang> <text>x</text> </hang>"], tool=HangingTool), max_running=1, max_waiting=1, max_per_key=1
    )
    asked = [asyncio.create_task(answer(service, name)) for name in ("a", "b")]
    await until(lambda: service.waiting)
    for caller, problem in (("a", "requests of yours"), ("c", "its queue is full")):
        with pytest.raises(Problem, match=problem) as refused:
            await answer(service, caller)
        assert (refused.value.status, refused.value.code) == (429, "rate_limit_exceeded")
    for task in asked:
        task.cancel()
    await asyncio.gather(*asked, return_exceptions=True)
    assert (service.running, service.waiting, service.live) == (0, 0, {})
    await service.aclose()


async def test_a_place_in_the_queue_lasts_no_longer_than_a_request():
    service = await started(
        Opener(["<hang> <text>x</text> </hang>"], tool=HangingTool), max_running=1, request_timeout_s=0.05
    )
    async with service.admitted("a"):
        with pytest.raises(Problem, match="no slot became free in time"):
            await answer(service, "b")
    assert (await answer(service, "a")).stop_reason is StopReason.DEADLINE
    await service.aclose()


async def test_watchers_hear_the_end_of_a_run_that_is_cancelled():
    service = await started(Opener(["<hang> <text>x</text> </hang>"], tool=HangingTool))
    heard = []
    service.watchers.append(lambda run_id: heard.append)
    asked = asyncio.create_task(answer(service))
    await until(lambda: service.live)
    asked.cancel()
    await asyncio.gather(asked, return_exceptions=True)
    assert heard[0].kind == "run_started"
    assert (heard[-1].kind, heard[-1].stop_reason) == ("run_stopped", StopReason.ABORTED)
    await service.aclose()


async def test_a_watcher_that_breaks_is_left_out(caplog):
    service = await started(Opener())
    heard, broken = [], []

    def breaks(event):
        broken.append(event)
        raise RuntimeError("a bug")

    service.watchers += [lambda run_id: breaks, lambda run_id: heard.append]
    assert (await answer(service)).answer == "yes"
    assert len(broken) == 1
    assert heard[-1].kind == "run_finished"
    assert "a watcher failed" in caplog.text
    await service.aclose()


async def test_an_engine_that_fails_is_in_the_log_with_its_run(caplog):
    service = await started(Opener())
    service.agent.model.engine.closed = True
    trajectory = await answer(service)
    assert trajectory.error.kind == "EngineError"
    assert f"run {trajectory.id}: EngineError: scripted: is closed" in caplog.text
    await service.aclose()


async def test_requests_lower_limits_and_never_raise_them():
    service = await started(Opener())
    own = service.agent.model.limits
    async with service.admitted("me") as lease:
        low = lease.prepare(Ask(messages=ASK.messages, max_tokens=5, sampling=SamplingParams(temperature=0.5)))
        high = lease.prepare(Ask(messages=ASK.messages, max_tokens=10**9, max_tool_calls=10**9))
    assert (low.limits.max_tokens, low.sampling.max_tokens, low.sampling.temperature) == (5, 5, 0.5)
    assert (high.limits.max_tokens, high.limits.max_tool_calls) == (own.max_tokens, own.max_tool_calls)
    await service.aclose()


@pytest.fixture(autouse=True)
def _levels(caplog):
    caplog.set_level(logging.WARNING, logger="icrl.serve")
