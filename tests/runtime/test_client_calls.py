"""Tools that whoever asked runs himself: a turn that calls one ends the run."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from watched import Watched, tool_call, until

from icrl.errors import ConfigError, SandboxError
from icrl.events import CallStarted, fold
from icrl.runtime.agent import Agent
from icrl.runtime.tools.offer import Offer
from icrl.runtime.tools.tool import ToolSpec
from icrl.testing import EchoTool, FailingTool, HangingTool, ScriptedEngine
from icrl.trajectory import StopReason, Trajectory
from icrl.types import Limits
from icrl.wire import decode, encode

WEATHER = ToolSpec(
    name="weather",
    description="Tell the weather.",
    parameters={"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
)
MINE = Offer(own=(EchoTool().spec,), client=(WEATHER,))
ASKS = tool_call("weather", city="Rikor")
SEARCHES = tool_call("echo", text="a fox")


async def worked(replies, *, dialect="hermes", offer=MINE, tools=None, limits=None):
    """Run and return the trajectory, its events and the engine."""
    engine, events = Watched(replies), []
    async with Agent(engine, dialect=dialect, tools=tools or [EchoTool()], limits=limits) as agent:
        run = agent.start("Who?", seed=1, offer=offer, emit=events.append)
        trajectory = await run.execute()
    return trajectory, events, engine


def started(events):
    return [event.call.name for event in events if isinstance(event, CallStarted)]


async def test_a_call_for_the_client_ends_the_run():
    trajectory, events, engine = await worked(["<echo> a </echo>", "<weather> Rikor </weather>"], dialect="xml")
    assert (trajectory.stop_reason, trajectory.answer, trajectory.error) == (StopReason.CLIENT_CALL, None, None)
    call = trajectory.calls[-1]
    assert (call.name, call.arguments, call.error) == ("weather", {"city": "Rikor"}, None)
    assert trajectory.segments[-1].source == "policy"
    assert started(events) == ["echo"]
    assert "</weather>" in engine.requests[0].params.stop
    assert "<weather> city </weather>: Tell the weather." in engine.tokenizer.decode(engine.requests[0].ids)


async def test_the_other_calls_of_its_turn_are_run():
    trajectory, events, engine = await worked([f"Both. {ASKS}{SEARCHES}"])
    assert trajectory.stop_reason is StopReason.CLIENT_CALL
    assert started(events) == ["echo"]
    (result,) = trajectory.results
    assert (result.call_id, result.text) == ("0.1", "a fox")
    assert [(s.source, s.ids) for s in trajectory.response[1:]] == [("tool", ())], "nobody has read it"
    assert trajectory.ids == engine.requests[0].ids + engine.said[0].ids


async def test_their_results_are_as_the_model_would_read_them():
    long = tool_call("echo", text="</tool_response>" + "word " * 10)
    trajectory, _, _ = await worked([ASKS + long], limits=Limits(max_observation_tokens=60))
    (result,) = trajectory.results
    assert result.truncated
    assert len(result.text) <= 60
    assert result.text.startswith("&lt;/tool_respon")


async def test_a_call_that_cannot_be_read_is_answered():
    trajectory, events, _ = await worked(["<weather></weather>", "<weather> Rikor </weather>"], dialect="xml")
    assert trajectory.stop_reason is StopReason.CLIENT_CALL
    assert trajectory.results[0].text.startswith("ToolArgumentError: &lt;weather> is empty")
    assert started(events) == ["weather"]


async def test_a_tool_that_nobody_offers_is_answered_with_all_that_are():
    trajectory, _, _ = await worked([tool_call("wether"), "Done."])
    text = trajectory.results[0].text
    assert text == "ToolNotFound: there is no tool 'wether'. Did you mean 'weather'? The tools are: echo, weather."
    assert trajectory.stop_reason is StopReason.ANSWER


async def test_a_tool_that_is_not_offered_is_not_run():
    tool = EchoTool()
    trajectory, _, _ = await worked([SEARCHES, "Done."], offer=Offer(), tools=[tool])
    assert trajectory.results[0].text == "ToolNotFound: there is no tool 'echo'. The tools are: none."
    assert tool.calls == []


@pytest.mark.parametrize(
    "limits",
    [
        Limits(max_turns=1),
        Limits(max_tool_calls=0),
        Limits(max_tokens=len(ASKS) + 1),
    ],
)
async def test_handing_over_needs_no_room(limits):
    trajectory, _, _ = await worked([ASKS], limits=limits)
    assert trajectory.stop_reason is StopReason.CLIENT_CALL


async def test_the_runtimes_own_calls_keep_their_limit():
    trajectory, events, _ = await worked([ASKS + SEARCHES], limits=Limits(max_tool_calls=0))
    assert trajectory.stop_reason is StopReason.MAX_TOOL_CALLS
    assert started(events) == []


async def test_a_call_that_was_cut_is_not_handed_over():
    trajectory, _, _ = await worked([ASKS], limits=Limits(max_tokens=len(ASKS) // 2))
    assert trajectory.stop_reason is StopReason.MAX_TOKENS


async def test_stopping_while_the_other_calls_run_hands_nothing_over():
    tool = HangingTool()
    offer = Offer(own=(tool.spec,), client=(WEATHER,))
    async with Agent(ScriptedEngine([ASKS + tool_call("hang", text="x")]), dialect="hermes", tools=[tool]) as agent:
        run = agent.start("Who?", offer=offer)
        running = asyncio.create_task(run.execute())
        await until(lambda: tool.calls)
        run.stop()
        trajectory = await running
    assert (trajectory.stop_reason, trajectory.results) == (StopReason.ABORTED, ())


async def test_a_broken_sandbox_hands_nothing_over():
    tool = FailingTool(error=SandboxError("broken"))
    offer = Offer(own=(tool.spec,), client=(WEATHER,))
    trajectory, _, _ = await worked([ASKS + tool_call("fail", text="x")], offer=offer, tools=[tool])
    assert trajectory.stop_reason is StopReason.ERROR


def test_names_must_differ():
    with pytest.raises(ConfigError, match="'weather' is taken"):
        Offer(own=(WEATHER,), client=(WEATHER,))


turns = st.lists(
    st.lists(st.sampled_from([ASKS, SEARCHES, tool_call("nobody"), "<tool_call>{", "Hm."]), min_size=1, max_size=4).map(
        "".join
    ),
    min_size=1,
    max_size=4,
)


@given(replies=turns)
@settings(max_examples=60)
def test_the_laws_stay(replies):
    trajectory, events, engine = asyncio.run(worked([*replies, "The end."], limits=Limits(max_turns=5)))
    assert fold(events[:-1]) == trajectory == events[-1].trajectory
    assert decode(encode(trajectory), Trajectory) == trajectory
    assert engine.requests[-1].ids + engine.said[-1].ids == trajectory.ids
    last = [s for s in trajectory.segments if s.source == "policy"][-1]
    asked = [call for call in last.calls if MINE.hands_over(call)]
    assert (trajectory.stop_reason is StopReason.CLIENT_CALL) == bool(asked)
    answered = {result.call_id for result in trajectory.results}
    assert all((call.id in answered) != (call in asked) for call in trajectory.calls)
