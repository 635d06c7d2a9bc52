"""Going on with a conversation: what the model reads again is what it wrote and read."""

from __future__ import annotations

import pytest
from watched import tool_call

from icrl.runtime.agent import Agent
from icrl.serve.history import answer_messages
from icrl.serve.narration import Narrator
from icrl.testing import EchoTool, FailingTool, ScriptedEngine
from icrl.types import Limits, Message

QUESTION = Message(role="user", content="Who?")


async def worked(replies, *, dialect="xml", tools=None, limits=None):
    """Run a question; return the engine, the trajectory, and the words by turn."""
    engine = ScriptedEngine(replies)
    said: dict[int, str] = {}
    async with Agent(engine, dialect=dialect, tools=tools or [EchoTool()], limits=limits) as agent:
        model = agent.model
        narrator = Narrator(model.dialect, model.tokenizer, model.toolbox.specs)

        def hear(event):
            for heard in narrator.feed(event):
                if heard.kind == "said":
                    said[heard.turn] = said.get(heard.turn, "") + heard.text

        trajectory = await agent.start([QUESTION], emit=hear).execute()
    return engine, trajectory, said


def words(messages):
    return [(m.role, m.content, [c.name for c in m.tool_calls]) for m in messages]


async def test_a_run_becomes_its_calls_results_and_answer():
    replies = ["<think> hm </think>\n<echo> a fox </echo>", "<think> so </think>\n<answer> It is. </answer>"]
    _, trajectory, said = await worked(replies)
    messages = list(answer_messages(trajectory, said))
    assert words(messages) == [("assistant", "", ["echo"]), ("tool", "a fox", []), ("assistant", "It is.", [])]
    assert messages[0].tool_calls[0].id == messages[1].tool_call_id


async def test_words_stay_in_the_turn_that_said_them():
    replies = ["I ask. " + tool_call("echo", text="a") + tool_call("echo", text="b"), "Both."]
    _, trajectory, said = await worked(replies, dialect="hermes")
    assert words(answer_messages(trajectory, said)) == [
        ("assistant", "I ask.", ["echo", "echo"]),
        ("tool", "a", []),
        ("tool", "b", []),
        ("assistant", "Both.", []),
    ]


async def test_calls_that_could_not_be_read_are_left_out():
    broken = "<tool_call>{nonsense}</tool_call>"
    _, trajectory, said = await worked([broken + tool_call("echo", text="b"), "Done."], dialect="hermes")
    assert words(answer_messages(trajectory, said)) == [
        ("assistant", "", ["echo"]),
        ("tool", "b", []),
        ("assistant", "Done.", []),
    ]


async def test_a_tool_that_failed_is_told_as_the_model_was_told():
    _, trajectory, said = await worked(["<fail> x </fail>", "<answer> no </answer>"], tools=[FailingTool()])
    assert words(answer_messages(trajectory, said))[1] == ("tool", "ToolError: it failed", [])


async def test_calls_without_an_answer_are_left_out():
    _, trajectory, said = await worked(["<echo> x </echo>"], limits=Limits(max_turns=1))
    assert trajectory.calls
    assert list(answer_messages(trajectory, said)) == []


@pytest.mark.parametrize(
    "replies",
    [
        ["<answer> It is 42. </answer>"],
        ["<echo> a fox </echo>", "<answer> A fox. </answer>"],
        ["<echo> a\nb </echo>", "<echo> c </echo>", "<answer> é </answer>"],
    ],
)
async def test_the_next_prompt_begins_with_the_very_tokens(replies):
    """For a model that writes tags as the dialect does and thinks nothing, nothing changes at all."""
    _, trajectory, said = await worked(replies)
    history = [QUESTION, *answer_messages(trajectory, said), Message(role="user", content="Why?")]
    engine = ScriptedEngine(["<answer> so </answer>"])
    async with Agent(engine, tools=[EchoTool()]) as agent:
        await agent.start(history).execute()
    ids = trajectory.ids
    text = engine.tokenizer.decode(engine.requests[0].ids)
    if "\n" not in replies[0]:  # a call over several lines is written with line breaks around it
        assert engine.requests[0].ids[: len(ids)] == ids
    assert text.startswith(engine.tokenizer.decode(ids[: trajectory.prompt_length]))
    assert text.rstrip().endswith("Question: Why?\nassistant")
