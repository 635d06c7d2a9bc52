from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from watched import idle, until

from icrl.errors import ConfigError, DataError
from icrl.events import RunFinished, RunStarted
from icrl.runtime.agent import Agent
from icrl.runtime.engines.local import LocalEngine
from icrl.testing import EchoTool, ScriptedEngine
from icrl.tiny import BASE_DIR
from icrl.trajectory import StopReason
from icrl.types import Demonstration, Limits, Message, SamplingParams, Task

ANSWER = "<answer> done </answer>"


def answering(**options) -> ScriptedEngine:
    return ScriptedEngine(lambda ids: ANSWER, **options)


@contextmanager
def no_new_threads() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) - before == set()


# ---- what a query may be


async def test_a_query_is_a_question_a_conversation_or_a_task():
    task = Task(query="What is it?", answers=("done",), id="t7")
    conversation = [Message(role="system", content="Be brief."), Message(role="user", content="What is it?")]
    agent = Agent(answering())
    asked = [(await agent.run(query)).trajectory.task for query in ("What is it?", conversation, task)]
    assert asked == [Task(query="What is it?"), Task(query=tuple(conversation)), task]


async def test_a_query_that_asks_nothing_is_refused():
    with pytest.raises(DataError, match=r"Task\.query: is empty"):
        await Agent(answering()).run("")
    with pytest.raises(DataError, match="must be a user message"):
        await Agent(answering()).run([Message(role="assistant", content="Hello.")])


async def test_a_result_carries_answer_and_trajectory():
    demonstrations = [Demonstration(query="1 + 1?", answer="2"), Demonstration(query="2 + 2?", answer="4")]
    result = await Agent(answering(), demonstrations=demonstrations, instruction="Reply.").run("3 + 3?")
    assert result.answer == result.trajectory.answer == "done"
    assert result.trajectory.shots == 2
    assert [s.role for s in result.trajectory.segments] == ["system", "demo", "demo", "query", "text"]
    assert result.trajectory.segments[0].text.endswith("Reply.\n\n")


async def test_an_empty_instruction_is_one():
    result = await Agent(answering(), instruction="").run("3 + 3?")
    assert "Answer the question" not in result.trajectory.segments[0].text


async def test_runs_have_their_own_names_and_seeds():
    engine = answering()
    agent = Agent(engine, sampling=SamplingParams(seed=5))
    first, second = [(await agent.run("go")).trajectory.id for _ in range(2)]
    assert first != second
    assert engine.requests[0].params.seed != engine.requests[1].params.seed


async def test_a_stream_begins_with_the_prompt_and_ends_with_the_trajectory():
    async with Agent(answering()).stream("go", seed=3) as events:
        seen = [event async for event in events]
    assert isinstance(seen[0], RunStarted)
    assert isinstance(seen[-1], RunFinished)
    assert seen[-1].trajectory.segments[: len(seen[0].segments)] == seen[0].segments


# ---- lifetime


async def test_an_engine_that_was_given_is_left_open_and_tools_are_closed():
    engine, echo = answering(), EchoTool()
    agent = Agent(engine, tools=[echo])
    await agent.run("go")
    await agent.run("go")
    assert not engine.closed
    assert echo.closed == 2
    assert idle(engine)


async def test_inside_a_block_everything_stays_open_until_its_end():
    engine, echo = answering(), EchoTool()
    async with Agent(engine, tools=[echo]) as agent:
        async with agent as same:
            assert same is agent
            await agent.run("go")
        async with agent.stream("go") as events:
            _ = [event async for event in events]
        assert echo.closed == 0
        assert agent.model.engine is engine
    assert echo.closed == 1
    assert idle(engine)


async def test_concurrent_bare_runs_share_one_opening():
    engine, echo = answering(latency_s=0.01), EchoTool()
    agent = Agent(engine, tools=[echo])
    results = await asyncio.gather(*(agent.run("go") for _ in range(8)))
    assert {result.answer for result in results} == {"done"}
    assert echo.closed == 1
    assert idle(engine)


def test_an_agent_works_in_one_event_loop_after_another():
    engine = answering()
    agent = Agent(engine, tools=[EchoTool()])
    assert [asyncio.run(agent.run("go")).answer for _ in range(2)] == ["done", "done"]


async def test_a_closed_agent_has_no_model():
    agent = Agent(answering())
    with pytest.raises(ConfigError, match="not open"):
        _ = agent.model
    with pytest.raises(ConfigError, match="not open"):
        agent.start("go")
    await agent.run("go")
    with pytest.raises(ConfigError, match="not open"):
        _ = agent.model


def test_building_an_agent_reads_nothing(tmp_path):
    agent = Agent(tmp_path / "not" / "there")
    with pytest.raises(ConfigError, match="holds no model"):
        asyncio.run(agent.run("go"))


def test_a_misspelt_dialect_is_refused_when_the_agent_is_built():
    with pytest.raises(ConfigError, match="Did you mean 'hermes'"):
        Agent(answering(), dialect="hermse")


async def test_an_opening_that_failed_is_tried_again(tmp_path):
    agent = Agent(tmp_path / "model", tools=[])
    outcomes = await asyncio.gather(agent.run("go"), agent.run("go"), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [ConfigError, ConfigError]
    (tmp_path / "model").symlink_to(BASE_DIR)
    async with agent:
        assert agent.model.settings.dialect == "xml"


async def test_an_engine_is_closed_even_where_a_tool_cannot_be(monkeypatch):
    class Stuck(EchoTool):
        async def aclose(self):
            raise RuntimeError("stuck")

    agent = Agent(BASE_DIR, tools=[Stuck()])
    with pytest.raises(RuntimeError, match="stuck"):
        async with agent:
            engine = agent.model.engine
    assert engine._worker is None


async def test_cancelling_one_run_leaves_the_others(monkeypatch):
    engine = answering(latency_s=0.05)
    agent = Agent(engine)
    first, second = (asyncio.create_task(agent.run("go")) for _ in range(2))
    await until(lambda: len(engine.live) == 2)
    first.cancel()
    assert (await second).answer == "done"
    assert first.cancelled()
    assert idle(engine)


async def test_a_run_can_be_cancelled_while_the_model_is_opened():
    agent = Agent(BASE_DIR, tools=[])
    task = asyncio.create_task(agent.run("go"))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert not [t for t in threading.enumerate() if t.name == "icrl-engine"]


# ---- the embedded model


def test_the_embedded_model_runs_and_leaves_no_thread(cache_home):
    async def ask():
        return await Agent(limits=Limits(max_tokens=24)).run("What is the code of Rikor?", seed=0)

    asyncio.run(ask())  # the libraries' own threads, which stay
    with no_new_threads():
        trajectory = asyncio.run(ask()).trajectory
    assert trajectory.sampled_tokens > 0
    assert trajectory.error is None
    assert trajectory.segments[0].text.count("<search> </search>") == 1


async def paused(agent: Agent) -> tuple[LocalEngine, asyncio.Task]:
    """Ask an open agent while its engine stands still, so that the request cannot end by itself."""
    engine = agent.model.engine
    await engine.pause()
    task = asyncio.create_task(agent.run("What is the code of Rikor?", seed=0))
    await until(lambda: engine._live)
    return engine, task


async def cancel_and_go_on() -> None:
    async with Agent(tools=[]) as agent:
        engine, task = await paused(agent)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert not engine._live
        await engine.resume()
        assert (await agent.run("What is the code of Rikor?", seed=1)).trajectory.error is None


async def cancel_a_bare_run() -> None:
    task = asyncio.create_task(Agent(tools=[]).run("What is the code of Rikor?", seed=0))
    await until(lambda: any(thread.name == "icrl-engine" for thread in threading.enumerate()))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def leave_a_stream() -> None:
    async with Agent(tools=[]).stream("What is the code of Rikor?", seed=0) as events:
        async for event in events:
            if event.kind == "text_delta":
                break


async def stop_a_run() -> None:
    async with Agent(tools=[]) as agent:
        await agent.model.engine.pause()
        run = agent.start("What is the code of Rikor?", seed=0)
        task = asyncio.create_task(run.execute())
        await until(lambda: agent.model.engine._live)
        run.stop()
        assert (await task).stop_reason is StopReason.ABORTED


@pytest.mark.parametrize("end", [cancel_and_go_on, cancel_a_bare_run, leave_a_stream, stop_a_run])
def test_ending_a_run_of_the_embedded_model_early_leaves_nothing(end):
    async def watched() -> None:
        await end()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    with no_new_threads():
        asyncio.run(watched())
