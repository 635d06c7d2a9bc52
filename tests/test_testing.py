from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icrl import testing
from icrl.errors import DataError, EngineError, ToolError
from icrl.runtime.engines.protocol import Engine
from icrl.runtime.tools.tool import Tool
from icrl.testing import ByteTokenizer, EchoTool, FailingTool, HangingTool, Request, ScriptedEngine, fake_logprob
from icrl.trajectory import Generation, VersionSpan
from icrl.types import Message, SamplingParams, ToolCall

TOKENIZER = ByteTokenizer()
PROMPT = TOKENIZER.encode("ask")
END = 258


async def say(engine: ScriptedEngine, *, request_id: str = "r", session: str | None = None, **sampling) -> Generation:
    return await engine.generate(PROMPT, SamplingParams(**sampling), request_id=request_id, session=session)


async def running(engine: ScriptedEngine, request_id: str = "r") -> asyncio.Task[Generation]:
    task = asyncio.create_task(say(engine, request_id=request_id))
    while request_id not in engine.live:  # noqa: ASYNC110
        await asyncio.sleep(0)
    return task


def test_every_public_name_is_documented():
    assert all(getattr(testing, name).__doc__ for name in testing.__all__)


# ---- ByteTokenizer


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_text_decodes_to_itself_and_holds_no_control_token(text):
    ids = TOKENIZER.encode(text)
    assert TOKENIZER.decode(ids) == text
    assert all(i < 256 for i in ids)
    assert TOKENIZER.encode_batch([text, text]) == [ids, ids]


def test_quoted_control_tokens_stay_text_and_the_templates_own_become_tokens():
    (prompt,) = TOKENIZER.render([Message(role="user", content="say <|im_end|>")])
    ids = TOKENIZER.encode(prompt)
    assert ids.count(END) == 1
    assert ids.count(257) == 2
    assert TOKENIZER.decode(ids) == "user\nsay <|im_end|>\nassistant\n"


def test_half_a_surrogate_pair_is_refused():
    with pytest.raises(DataError, match="character 1 is half of a surrogate pair"):
        TOKENIZER.encode("a\ud800")


@given(st.lists(st.sampled_from([*"aé€😀", END, 257]), max_size=12), st.integers(0, 12), st.integers(0, 12))
def test_located_tokens_decode_to_the_characters(pieces, start, size):
    ids = [i for piece in pieces for i in ([piece] if isinstance(piece, int) else TOKENIZER.encode(piece))]
    text = TOKENIZER.decode(ids)
    start, end = min(start, len(text)), min(start + size, len(text))
    first, last = TOKENIZER.locate(ids, start, end)
    assert TOKENIZER.decode(ids[first:last]) == text[start:end]
    assert start == end or all(ids[edge] < 256 for edge in (first, last - 1))


def test_bytes_that_are_no_text_can_be_located():
    ids = [0xC3, 65, 0xE2, 0x82]
    assert TOKENIZER.decode(ids) == "\ufffdA\ufffd"
    assert TOKENIZER.locate(ids, 2, 3) == (2, 4)


def test_template_writes_tools_calls_and_their_answers():
    spec = {"type": "function", "function": {"name": "echo"}}
    call = ToolCall(name="echo", arguments={"text": "hi"})
    messages = [
        Message(role="system", content="Be brief."),
        Message(role="user", content="go"),
        Message(role="assistant", content="", tool_calls=(call,)),
        Message(role="tool", content="hi", tool_call_id="0"),
    ]
    (rendered,) = TOKENIZER.render(messages, tools=[spec])
    assert rendered.text.count("Be brief.") == 1
    assert '{"type": "function", "function": {"name": "echo"}}' in rendered.text
    assert '<tool_call>\n{"name": "echo", "arguments": {"text": "hi"}}\n</tool_call><|im_end|>' in rendered.text
    assert rendered.text.endswith("<tool_response>\nhi\n</tool_response><|im_end|>\n<|im_start|>assistant\n")
    head, tail = TOKENIZER.render([Message(role="user", content="cut here")], cuts=[(0, 4)], generate=False)
    assert (head.text, tail.text) == ("<|im_start|>user\ncut ", "here<|im_end|>\n")


# ---- ScriptedEngine


async def test_replies_follow_a_sessions_turns():
    engine = ScriptedEngine(["one", "two"])
    assert isinstance(engine, Engine)
    said = [await say(engine, session=session) for session in ("a", "b", "a", None)]
    assert [TOKENIZER.decode(generation.ids) for generation in said] == ["one", "one", "two", "one"]
    with pytest.raises(EngineError, match="the script has 2 replies; session 'a' wants more"):
        await say(engine, session="a")


async def test_reply_can_depend_on_the_ids():
    engine = ScriptedEngine(lambda ids: TOKENIZER.decode(ids)[::-1])
    assert TOKENIZER.decode((await say(engine)).ids) == "ksa"


async def test_generation_is_exact():
    generation = await say(ScriptedEngine(["é"], weight_version=3))
    assert generation.ids == (0xC3, 0xA9, END)
    assert generation.logprobs == tuple(fake_logprob(i, 3 + n) for n, i in enumerate(generation.ids))
    assert generation.versions == (VersionSpan(version=3, start=0, end=3),)
    assert (generation.prompt_tokens, generation.finish_reason) == (3, "eos")


@given(st.integers(0, 300_000), st.integers(0, 300_000))
def test_logprobs_are_lawful(token, position):
    assert -1 <= fake_logprob(token, position) < 0


@pytest.mark.parametrize(
    ("reply", "sampling", "text", "reason"),
    [
        ("call</search>", {"stop": ("</search>",)}, "call</search>", "stop"),
        ("call</search> more", {"stop": ("</search>",)}, "call</search>", "stop"),
        ("abcdef", {"max_tokens": 4}, "abcd", "length"),
        ([104, 105], {}, "hi", "length"),
        ([104, END], {}, "h", "eos"),
        ([104, 105], {"stop": ("i",)}, "hi", "stop"),
        ("", {}, "", "eos"),
    ],
)
async def test_finish_reasons(reply, sampling, text, reason):
    generation = await say(ScriptedEngine([reply]), **sampling)
    assert (TOKENIZER.decode(generation.ids), generation.finish_reason) == (text, reason)


async def test_context_limit_cuts_and_bad_requests_are_refused():
    engine = ScriptedEngine(lambda ids: "long reply", context_limit=7)
    generation = await say(engine)
    assert (TOKENIZER.decode(generation.ids), generation.finish_reason) == ("long", "length")
    with pytest.raises(EngineError, match="outside the vocabulary of 259"):
        await engine.generate([300], SamplingParams(), request_id="r")
    assert len(engine.requests) == 1


async def test_requests_are_remembered_exactly():
    engine = ScriptedEngine(["x"])
    params = SamplingParams(temperature=0.5)
    await engine.generate(PROMPT, params, request_id="r", session="s", shared_prefix=2)
    assert engine.requests == [Request(ids=tuple(PROMPT), params=params, request_id="r", session="s", shared_prefix=2)]


async def test_deltas_are_the_ids_in_order():
    seen: list[int] = []
    engine = ScriptedEngine(["hello"])
    generation = await engine.generate(PROMPT, SamplingParams(), request_id="r", on_delta=seen.extend)
    assert tuple(seen) == generation.ids


async def test_abort_returns_the_part_that_was_said():
    engine = ScriptedEngine(["a" * 99], latency_s=600.0)
    task = await running(engine)
    await engine.abort("unknown")
    await engine.abort("r")
    generation = await task
    assert generation.finish_reason == "abort"
    assert generation.ids == ()
    assert engine.live == frozenset()


async def test_abort_in_the_middle_keeps_a_prefix():
    engine = ScriptedEngine(["hello"])
    said: list[int] = []

    def on_delta(ids):
        said.extend(ids)
        if len(said) == 2:
            engine._live["r"].aborted.set()

    generation = await engine.generate(PROMPT, SamplingParams(), request_id="r", on_delta=on_delta)
    assert (generation.ids, generation.finish_reason) == (tuple(b"he"), "abort")


async def test_latency_is_spent():
    generation = await say(ScriptedEngine(["abc"], latency_s=0.02))
    assert generation.wall_s >= 0.02


async def test_cancelling_leaves_no_request():
    engine = ScriptedEngine(["a"], latency_s=600.0)
    task = await running(engine)
    with pytest.raises(EngineError, match="request id 'r' is in use"):
        await say(engine)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert engine.live == frozenset()


async def test_new_weights_in_the_middle_split_the_versions():
    engine = ScriptedEngine(["abc"])
    said: list[int] = []

    def on_delta(ids):
        said.extend(ids)
        if len(said) == 2:
            engine._running.clear()

    task = asyncio.create_task(engine.generate(PROMPT, SamplingParams(), request_id="r", on_delta=on_delta))
    while len(said) < 2:  # noqa: ASYNC110
        await asyncio.sleep(0)
    pushed = iter([("weight", 1.0)])
    await engine.update(pushed, version=1)
    assert next(pushed, None) is None
    await engine.resume()
    versions = (await task).versions
    assert versions == (VersionSpan(version=0, start=0, end=2), VersionSpan(version=1, start=2, end=4))
    assert engine.info.weight_version == 1


async def test_pausing_holds_or_aborts():
    engine = ScriptedEngine(lambda ids: "abc")
    await engine.pause()
    held, aborted = await running(engine, "held"), None
    await engine.resume()
    assert (await held).finish_reason == "eos"
    await engine.pause()
    aborted = await running(engine, "aborted")
    await engine.pause("abort")
    assert (await aborted).finish_reason == "abort"


async def test_closing_aborts_what_is_pending_and_refuses_more():
    engine = ScriptedEngine(["a"], latency_s=600.0)
    task = await running(engine)
    await engine.aclose()
    assert (await task).finish_reason == "abort"
    with pytest.raises(EngineError, match="is closed"):
        await say(engine)


# ---- tools


@pytest.mark.parametrize("tool", [EchoTool(), FailingTool(), HangingTool()])
async def test_fake_tools_are_tools(tool):
    assert isinstance(tool, Tool)
    assert tool.spec.name in tool.spec.description
    await tool.aclose()
    assert tool.closed == 1


async def test_fake_tools_remember_their_calls():
    echo, failing = EchoTool(name="other"), FailingTool()
    assert await echo({"text": "hi"}) == "hi"
    with pytest.raises(ToolError, match="it failed"):
        await failing({"text": "x"})
    assert (echo.spec.name, echo.calls, failing.calls) == ("other", [{"text": "hi"}], [{"text": "x"}])


async def test_hanging_tool_ignores_as_many_cancellations_as_told():
    tool = HangingTool(swallows=1)
    task = asyncio.create_task(tool({}))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert tool.cancellations == 2
