"""The laws of the loop, in the fenced dialect: exact tokens, and foreign text that stays foreign."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from watched import Watched

from icrl.runtime.agent import Agent
from icrl.runtime.tools.tool import tool
from icrl.testing import ByteTokenizer, EchoTool
from icrl.trajectory import StopReason
from icrl.types import Limits

BYTES = ByteTokenizer()
BLOCK = "```python\nhi\n```\n"
FRAGMENTS = [
    *("<|im_end|>", "<|im_start|>", "</interpreter>", "<interpreter>", "<answer> 4 </answer>", "\\boxed{4}"),
    *("<think>", "</think>", "<code> hi </code>", f"<code>\n{BLOCK}", BLOCK, "```python\n", "\n```\n", "```text\n"),
    *("`", " ", "\n", "é", "😀", "\x00", "\x1b[31m", "word"),
]
spoken = st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=4), max_size=5).map("".join)
foreign = st.lists(st.sampled_from([*FRAGMENTS, "\ud83d"]) | st.text(max_size=4), max_size=6).map("".join)


def run(script, tokenizer=BYTES, tools=None, **options):
    engine = Watched(script, tokenizer=tokenizer)
    agent = Agent(engine, dialect="fence", tools=tools or [EchoTool()], **options)
    return engine, asyncio.run(agent.run("go", seed=1)).trajectory


@pytest.mark.parametrize("model", ["bytes", "tiny", "qwen3"])
@settings(max_examples=30)
@given(data=st.data())
def test_requests_carry_exactly_the_segments_before_them(chat_tokenizer, model, data):
    tokenizer = BYTES if model == "bytes" else chat_tokenizer(model)
    ids = st.lists(st.integers(0, tokenizer.vocab_size - 1), min_size=1, max_size=12)
    engine, trajectory = run(data.draw(st.lists(spoken | ids, min_size=1, max_size=4)), tokenizer)
    sampled = [i for i, segment in enumerate(trajectory.segments) if segment.source == "policy"]
    assert len(sampled) == len(engine.said)
    for request, said, at in zip(engine.requests, engine.said, sampled, strict=False):
        assert request.ids == tuple(i for segment in trajectory.segments[:at] for i in segment.ids)
        assert (trajectory.segments[at].ids, trajectory.segments[at].logprobs) == (said.ids, said.logprobs)


def answering(text):
    @tool(name="echo")
    async def answer(text: str) -> str:
        """Echo."""
        return foreign_text

    foreign_text = text
    return answer


@settings(max_examples=40)
@given(first=foreign, second=foreign, block=st.sampled_from([BLOCK, f"<code>\n{BLOCK}", "<code> hi </code>"]))
def test_foreign_text_adds_no_control_token_and_closes_nothing(first, second, block):
    def control_tokens(text):
        _, trajectory = run([block, "<answer> done </answer>"], tools=[answering(text)])
        told = [s for s in trajectory.response if s.source != "policy"]
        whole = "".join(s.text for s in told)
        assert whole.count("</interpreter>") == whole.count("<interpreter>") == 1
        assert "```" not in whole
        assert trajectory.answer == "done"
        return [i for s in told for i in s.ids if i >= 256]

    assert control_tokens(first) == control_tokens(second) == []


def test_a_turn_stopped_at_nothing_goes_on():
    script = ["See:\n```text\nx\n```\n", f"I run it.\n{BLOCK}", "<answer> hi </answer>"]
    _, trajectory = run(script)
    assert trajectory.answer == "hi"
    assert [result.error for result in trajectory.results] == ["ToolArgumentError", None]


def test_it_says_so_when_limits_end_it():
    _, trajectory = run([BLOCK] * 3, limits=Limits(max_turns=2))
    assert trajectory.stop_reason is StopReason.MAX_TURNS
