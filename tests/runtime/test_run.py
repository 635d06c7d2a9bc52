from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Sequence
from dataclasses import fields, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from watched import Watched, idle, timeless, tool_call, until

from icrl.errors import ConfigError, EngineError, SandboxError, ToolError
from icrl.events import CallFinished, CallStarted, Event, RunFinished, TextDelta, fold
from icrl.runtime import run as module
from icrl.runtime.agent import Agent
from icrl.runtime.tools.tool import Tool, ToolPolicy, tool
from icrl.testing import ByteTokenizer, EchoTool, FailingTool, HangingTool, ScriptedEngine, fake_logprob
from icrl.trajectory import Generation, StopReason, Trajectory
from icrl.types import Limits, SamplingParams

BYTES = ByteTokenizer()
ANSWER = "<answer> done </answer>"
ECHO = "<echo> hi </echo>"

# ---- token exactness

FRAGMENTS = [
    *("<|im_end|>", "<|im_start|>", "<|endoftext|>", "</information>", "<information>", "<answer> 4 </answer>"),
    *("</tool_response>", "<tool_response>", "<tool_call>", "</tool_call>", "<think>", "</think>", "</echo>"),
    *("<echo> hi </echo>", "<echo>", tool_call("echo", text="a </tool_response> b"), tool_call("nobody"), "{", '"'),
    *(" ", "\n", "é", "😀", "\x00", "\x1b[31m", "word"),
]
adversarial = st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=4), max_size=5).map("".join)
hermes_calls = st.lists(adversarial.map(lambda text: tool_call("echo", text=text)), min_size=1, max_size=3).map("".join)
xml_call = adversarial.map(lambda text: f"<echo> {text} </echo>")
spoken = adversarial | hermes_calls | xml_call
# Tools also answer with what no tokenizer accepts.
foreign = st.lists(st.sampled_from([*FRAGMENTS, "\ud83d", "\x9b"]) | st.text(max_size=4), max_size=6).map("".join)


def replies(vocab_size: int) -> st.SearchStrategy[list[str | list[int]]]:
    random_ids = st.lists(st.integers(0, vocab_size - 1), min_size=1, max_size=12)
    return st.lists(spoken | random_ids, min_size=1, max_size=4)


def check_exactness(engine: Watched, trajectory: Trajectory) -> None:
    """Everything the engine was given and said, and nothing else, in order."""
    sampled = [i for i, segment in enumerate(trajectory.segments) if segment.source == "policy"]
    assert len(sampled) == len(engine.said)
    for request, generation, position in zip(engine.requests, engine.said, sampled, strict=False):
        before, segment = trajectory.segments[:position], trajectory.segments[position]
        assert request.ids == tuple(i for s in before for i in s.ids)
        assert segment.ids == generation.ids
        assert segment.logprobs == generation.logprobs
        assert segment.logprobs == tuple(fake_logprob(t, len(request.ids) + i) for i, t in enumerate(segment.ids))
        assert segment.versions == generation.versions
        assert request.shared_prefix == trajectory.shared_prefix
    if engine.said:
        appended = tuple(i for s in trajectory.segments[sampled[-1] + 1 :] for i in s.ids)
        assert trajectory.ids == engine.requests[len(engine.said) - 1].ids + engine.said[-1].ids + appended


async def run_script(engine: ScriptedEngine, dialect: str, query: str = "go", **options) -> Trajectory:
    options.setdefault("tools", [EchoTool()])
    return (await Agent(engine, dialect=dialect, **options).run(query, seed=1)).trajectory


@pytest.mark.parametrize("dialect", ["xml", "hermes"])
@settings(max_examples=60)
@given(data=st.data())
def test_requests_carry_exactly_the_segments_before_them(dialect, data):
    engine = Watched(data.draw(replies(BYTES.vocab_size)), tokenizer=BYTES)
    query = data.draw(spoken.filter(bool))
    trajectory = asyncio.run(run_script(engine, dialect, query))
    check_exactness(engine, trajectory)
    assert trajectory.logprobs() == tuple(p for s in trajectory.segments for p in s.logprobs or (0.0,) * len(s.ids))


@pytest.mark.parametrize("model", ["qwen3", "tiny"])
@settings(max_examples=25)
@given(data=st.data())
def test_exactness_holds_where_text_has_many_tokenisations(model, data, chat_tokenizer):
    tokenizer = chat_tokenizer(model)
    engine = Watched(data.draw(replies(tokenizer.vocab_size)), tokenizer=tokenizer)
    dialect = "hermes" if model == "qwen3" else "xml"
    check_exactness(engine, asyncio.run(run_script(engine, dialect, data.draw(spoken.filter(bool)))))


def test_a_samples_own_tokenisation_is_kept():
    # The character é in one token sequence that the tokenizer would not have chosen: halves around a control token.
    odd = [0xC3, 257, 0xA9, *BYTES.encode(ECHO)]
    engine = Watched([odd, ANSWER], tokenizer=BYTES)
    trajectory = asyncio.run(run_script(engine, "xml"))
    assert engine.requests[1].ids[len(engine.requests[0].ids) :][: len(odd)] == tuple(odd)
    assert trajectory.stop_reason is StopReason.ANSWER


def answering(text: str) -> Tool:
    @tool(name="echo")
    async def answer(text: str) -> str:
        """Echo."""
        return foreign_text

    foreign_text = text
    return answer


@pytest.mark.parametrize("dialect", ["xml", "hermes"])
@settings(max_examples=40)
@given(first=foreign, second=foreign)
def test_foreign_text_adds_no_control_token_and_closes_nothing(dialect, first, second):
    script = [ECHO if dialect == "xml" else tool_call("echo", text="x"), ANSWER]
    closing = "</information>" if dialect == "xml" else "</tool_response>"

    def control_tokens(text: str) -> list[int]:
        trajectory = asyncio.run(run_script(Watched(script), dialect, tools=[answering(text)]))
        told = [s for s in trajectory.response if s.source != "policy"]
        assert "".join(s.text for s in told).count(closing) == 1
        assert [s.result.error for s in told if s.result] == [None]
        return [i for s in told for i in s.ids if i >= 256]

    assert control_tokens(first) == control_tokens(second)


# ---- events


@pytest.mark.parametrize("dialect", ["xml", "hermes"])
@settings(max_examples=50)
@given(script=replies(BYTES.vocab_size), query=spoken.filter(bool))
def test_folding_the_events_gives_the_trajectory_of_a_run(dialect, script, query):
    async def stream():
        agent = Agent(ScriptedEngine(script), dialect=dialect, tools=[EchoTool()])
        async with agent.stream(query, seed=1) as events:
            return [event async for event in events]

    events = asyncio.run(stream())
    trajectory = asyncio.run(run_script(ScriptedEngine(script), dialect, query))
    assert isinstance(events[-1], RunFinished)
    assert fold(events[:-1]) == fold(events) == events[-1].trajectory
    assert timeless(events[-1].trajectory) == timeless(trajectory)
    deltas = "".join(event.text for event in events if isinstance(event, TextDelta))
    turns = "".join(s.text for s in trajectory.segments if s.source == "policy")
    # Half a character that a turn ends in is never shown.
    assert "\ufffd" in turns or deltas == turns


# ---- stop reasons


class Deaf(ScriptedEngine):
    """An engine that does not hear aborts."""

    async def abort(self, request_id: str) -> None:
        await asyncio.sleep(0)


class Refusing(ScriptedEngine):
    """An engine whose aborts fail."""

    async def abort(self, request_id: str) -> None:
        raise EngineError("no abort today", engine="scripted")


async def execute(engine: ScriptedEngine, *, dialect: str = "xml", tools: Sequence[Tool] = (), **options):
    async with Agent(engine, dialect=dialect, tools=tools, **options) as agent:
        trajectory = await agent.start("go", seed=1).execute()
    assert idle(engine)
    return trajectory


async def test_an_answer_ends_a_run():
    trajectory = await execute(ScriptedEngine([ECHO, ANSWER]), tools=[EchoTool()])
    assert (trajectory.stop_reason, trajectory.answer) == (StopReason.ANSWER, "done")
    assert [result.text for result in trajectory.results] == ["hi"]
    assert trajectory.error is None
    assert [turn.finish_reason for turn in trajectory.turns] == ["stop", "stop"]
    assert trajectory.turns[1].prompt_tokens == len(trajectory.ids) - trajectory.turns[1].sampled_tokens


async def test_a_turn_without_call_or_answer_ends_a_run():
    trajectory = await execute(ScriptedEngine(["I do not know."]))
    assert (trajectory.stop_reason, trajectory.answer) == (StopReason.END_OF_TURN, None)


async def test_the_last_turn_may_answer_but_not_call():
    limits = Limits(max_turns=2)
    engine = ScriptedEngine([ECHO, ANSWER])
    assert (await execute(engine, tools=[EchoTool()], limits=limits)).stop_reason is StopReason.ANSWER
    echo = EchoTool()
    trajectory = await execute(ScriptedEngine([ECHO, ECHO]), tools=[echo], limits=limits)
    assert trajectory.stop_reason is StopReason.MAX_TURNS
    assert len(echo.calls) == 1
    assert trajectory.segments[-1].source == "policy"


async def test_calls_beyond_the_limit_are_not_made():
    echo = EchoTool()
    both = tool_call("echo", text="a") + tool_call("echo", text="b")
    trajectory = await execute(
        ScriptedEngine([both, both]), dialect="hermes", tools=[echo], limits=Limits(max_tool_calls=3)
    )
    assert trajectory.stop_reason is StopReason.MAX_TOOL_CALLS
    assert len(echo.calls) == 2
    assert len(trajectory.calls) == 4


async def test_a_cut_turn_and_a_spent_budget_are_both_max_tokens():
    one_turn = await execute(ScriptedEngine(["word " * 9]), sampling=SamplingParams(max_tokens=7))
    assert one_turn.stop_reason is StopReason.MAX_TOKENS
    assert one_turn.sampled_tokens == 7
    whole = await execute(ScriptedEngine(["word " * 9]), limits=Limits(max_tokens=11))
    assert whole.stop_reason is StopReason.MAX_TOKENS
    assert whole.sampled_tokens == 11


@settings(max_examples=50)
@given(budget=st.integers(1, 120), observation=st.integers(1, 200))
def test_the_response_never_exceeds_its_budget(budget, observation):
    limits = Limits(max_tokens=budget, max_observation_tokens=observation, max_turns=3)
    engine = Watched([f"<echo> {'long ' * 9}</echo>"] * 3)
    trajectory = asyncio.run(run_script(engine, "xml", limits=limits))
    assert len(trajectory.ids) - trajectory.prompt_length <= budget
    assert trajectory.stop_reason in (StopReason.MAX_TOKENS, StopReason.MAX_TURNS)
    check_exactness(engine, trajectory)


async def test_a_turn_that_spends_the_budget_calls_no_tool():
    echo = EchoTool()
    engine = ScriptedEngine([ECHO])
    trajectory = await execute(engine, tools=[echo], limits=Limits(max_tokens=len(ECHO)))
    assert trajectory.stop_reason is StopReason.MAX_TOKENS
    assert len(trajectory.calls) == 1
    assert echo.calls == []


async def test_a_prompt_that_fills_the_context_asks_nothing():
    engine = ScriptedEngine([ANSWER], context_limit=20)
    trajectory = await execute(engine)
    assert trajectory.stop_reason is StopReason.CONTEXT_LIMIT
    assert engine.requests == []
    assert trajectory.response == ()


async def test_the_context_can_fill_up_in_a_turn_or_with_an_observation():
    long = await execute(ScriptedEngine(["word " * 400], context_limit=300), sampling=SamplingParams(max_tokens=999))
    assert long.stop_reason is StopReason.CONTEXT_LIMIT
    assert len(long.ids) == 300
    echo = EchoTool()
    prompt = len((await execute(ScriptedEngine([ANSWER]), tools=[echo])).ids) - len(ANSWER)
    engine = ScriptedEngine([ECHO, ANSWER], context_limit=prompt + len(ECHO) + 9)
    observed = await execute(engine, tools=[echo])
    assert observed.stop_reason is StopReason.CONTEXT_LIMIT
    assert len(engine.requests) == 1
    assert observed.segments[-1].source == "policy"


async def test_the_deadline_keeps_what_was_sampled():
    engine = ScriptedEngine(["word " * 100], latency_s=50)
    trajectory = await execute(engine, limits=Limits(deadline_s=0.3), sampling=SamplingParams(max_tokens=999))
    assert trajectory.stop_reason is StopReason.DEADLINE
    assert trajectory.turns[0].finish_reason == "abort"
    assert trajectory.sampled_tokens < 100
    assert trajectory.error is None


async def test_the_deadline_ends_a_tool():
    hang = HangingTool()
    trajectory = await execute(
        ScriptedEngine([tool_call("hang", text="x")]), dialect="hermes", tools=[hang], limits=Limits(deadline_s=0.05)
    )
    assert trajectory.stop_reason is StopReason.DEADLINE
    assert hang.cancellations == 1


@pytest.mark.parametrize("kind", [Deaf, Refusing])
async def test_an_engine_that_ignores_its_abort_has_failed(kind, monkeypatch):
    monkeypatch.setattr(module, "ABORT_GRACE_S", 0.02)
    engine = kind(["word " * 100], latency_s=50)
    trajectory = await execute(engine, limits=Limits(deadline_s=0.05))
    assert trajectory.stop_reason is StopReason.ERROR
    assert trajectory.error is not None
    assert trajectory.error.kind == "EngineError"
    assert "did not answer its abort" in trajectory.error.message


async def test_stopping_a_deaf_engine_does_not_wait_for_the_deadline(monkeypatch):
    monkeypatch.setattr(module, "ABORT_GRACE_S", 0.02)
    engine = Deaf(["word " * 100], latency_s=50)
    async with Agent(engine) as agent:
        run = agent.start("go")
        task = asyncio.create_task(run.execute())
        await until(lambda: engine.live)
        run.stop()
        async with asyncio.timeout(5):
            assert (await task).stop_reason is StopReason.ERROR


async def test_stop_during_sampling_keeps_the_partial():
    def stop_at_once(event: Event) -> None:
        if isinstance(event, TextDelta):
            run.stop()
            run.stop(StopReason.DEADLINE)  # the first reason counts

    engine = Watched(["word " * 100], latency_s=0.5)
    async with Agent(engine) as agent:
        run = agent.start("go", emit=stop_at_once)
        trajectory = await run.execute()
    assert trajectory.stop_reason is StopReason.ABORTED
    assert trajectory.response_text == "w"
    check_exactness(engine, trajectory)
    assert idle(engine)


async def test_stop_during_tools_cancels_them():
    hang, engine = HangingTool(), ScriptedEngine([tool_call("hang", text="x")])
    async with Agent(engine, dialect="hermes", tools=[hang]) as agent:
        run = agent.start("go")
        task = asyncio.create_task(run.execute())
        await until(lambda: hang.calls)
        run.stop()
        trajectory = await task
    assert trajectory.stop_reason is StopReason.ABORTED
    assert trajectory.segments[-1].source == "policy"
    assert hang.cancellations == 1
    assert idle(engine)


async def test_a_run_stopped_before_it_starts_asks_nothing():
    engine = ScriptedEngine([ANSWER])
    async with Agent(engine) as agent:
        run = agent.start("go")
        run.stop()
        trajectory = await run.execute()
    assert (trajectory.stop_reason, trajectory.response) == (StopReason.ABORTED, ())
    assert engine.requests == []


async def test_an_engine_that_aborts_by_itself_ends_the_run():
    engine = ScriptedEngine(["word " * 100], latency_s=50)
    task = asyncio.create_task(Agent(engine).run("go"))
    await until(lambda: engine.live)
    await engine.pause("abort")
    assert (await task).trajectory.stop_reason is StopReason.ABORTED


async def test_an_engines_failure_is_data():
    trajectory = await execute(ScriptedEngine([ECHO]), tools=[EchoTool()])
    assert trajectory.stop_reason is StopReason.ERROR
    assert trajectory.error is not None
    assert trajectory.error.kind == "EngineError"
    assert "wants more" in trajectory.error.message
    assert len(trajectory.results) == 1


@pytest.mark.parametrize("others", [[], [HangingTool()], [EchoTool()]])
async def test_broken_isolation_ends_the_run_and_is_not_shown(others):
    broken = FailingTool(error=SandboxError("escaped"))
    script = "".join(tool_call(tool.name, text="x") for tool in [*others, broken])
    trajectory = await execute(ScriptedEngine([script]), dialect="hermes", tools=[*others, broken])
    assert trajectory.stop_reason is StopReason.ERROR
    assert trajectory.error is not None
    assert (trajectory.error.kind, trajectory.error.message) == ("SandboxError", "escaped")
    assert "escaped" not in trajectory.response_text
    assert trajectory.results == ()


async def test_two_broken_calls_are_one_failure():
    broken = FailingTool(error=SandboxError("escaped"))
    script = tool_call("fail") + tool_call("fail")
    trajectory = await execute(ScriptedEngine([script]), dialect="hermes", tools=[broken])
    assert trajectory.stop_reason is StopReason.ERROR


# An engine's own TimeoutError is none of ours.
@pytest.mark.parametrize("kind", [TypeError, TimeoutError])
async def test_mistakes_in_the_program_propagate(kind):
    def wrong(ids):
        raise kind("a bug")

    engine = ScriptedEngine(wrong)
    with pytest.raises(kind, match="a bug"):
        await Agent(engine).run("go")
    assert idle(engine)
    async with Agent(engine).stream("go") as events:
        with pytest.raises(kind, match="a bug"):
            _ = [event async for event in events]
    assert idle(engine)


async def test_a_model_that_cannot_be_loaded_is_not_a_failed_trajectory():
    class Unloadable(ScriptedEngine):
        async def generate(self, *args, **options):
            raise ConfigError("model: not a decoder")

    with pytest.raises(ConfigError, match="not a decoder"):
        await Agent(Unloadable([])).run("go")


# ---- tools


async def test_calls_of_a_turn_run_at_once_and_are_answered_in_order():
    script = tool_call("slow", text="1") + tool_call("echo", text="2")
    tools = [EchoTool(name="slow", latency_s=0.05), EchoTool()]
    async with Agent(ScriptedEngine([script, "fine"]), dialect="hermes", tools=tools).stream("go") as events:
        seen = [event async for event in events]
    calls = [(type(e), e.call.name) for e in seen if isinstance(e, CallStarted | CallFinished)]
    assert calls == [(CallStarted, "slow"), (CallStarted, "echo"), (CallFinished, "echo"), (CallFinished, "slow")]
    trajectory = seen[-1].trajectory
    assert [result.text for result in trajectory.results] == ["1", "2"]
    assert [call.id for call in trajectory.calls] == [result.call_id for result in trajectory.results] == ["0.0", "0.1"]


@pytest.mark.parametrize(
    ("tool", "error", "text"),
    [
        (HangingTool(policy=ToolPolicy(timeout_s=0.02)), "ToolTimeout", "ToolTimeout: hang gave no answer"),
        (FailingTool(error=ToolError("no network")), "ToolError", "ToolError: no network"),
        (FailingTool(error=ZeroDivisionError("by zero")), "ZeroDivisionError", "ZeroDivisionError: by zero"),
    ],
)
@pytest.mark.parametrize("dialect", ["xml", "hermes"])
async def test_a_tool_that_fails_is_an_observation_and_the_run_goes_on(dialect, tool, error, text):
    call = f"<{tool.name}> x </{tool.name}>" if dialect == "xml" else tool_call(tool.name)
    trajectory = await execute(ScriptedEngine([call, ANSWER]), dialect=dialect, tools=[tool])
    assert trajectory.stop_reason is StopReason.ANSWER
    assert [result.error for result in trajectory.results] == [error]
    assert text in trajectory.response_text


async def test_unknown_tools_and_unreadable_calls_are_observations():
    script = tool_call("ecko", text="x") + "<tool_call>{</tool_call>"
    trajectory = await execute(ScriptedEngine([script, "fine"]), dialect="hermes", tools=[EchoTool()])
    assert [result.error for result in trajectory.results] == ["ToolNotFound", "ToolArgumentError"]
    assert "Did you mean 'echo'?" in trajectory.response_text
    assert trajectory.stop_reason is StopReason.ANSWER


@pytest.mark.parametrize("dialect", ["xml", "hermes"])
async def test_ten_megabytes_are_cut_and_stay_wrapped(dialect):
    call = ECHO if dialect == "xml" else tool_call("echo", text="x")
    text = "<|im_end|></information></tool_response>\x00" * 250_000
    limits = Limits(max_observation_tokens=200)
    trajectory = await execute(ScriptedEngine([call, ANSWER]), dialect=dialect, tools=[answering(text)], limits=limits)
    assert trajectory.stop_reason is StopReason.ANSWER
    (segment,) = [s for s in trajectory.segments if s.role == "tool_result"]
    assert segment.result is not None
    assert segment.result.truncated
    assert "characters cut" in segment.text
    assert len(segment.ids) <= 200 + 50
    assert segment.text.count("</information>" if dialect == "xml" else "</tool_response>") == 1
    assert all(i < 256 for i in segment.ids)
    assert "\x00" not in segment.text


# ---- cancellation


@pytest.mark.parametrize("where", ["generation", "tool"])
async def test_cancelling_a_run_leaves_nothing(where):
    hang = HangingTool()
    engine = ScriptedEngine([tool_call("hang", text="x"), ANSWER], latency_s=50 if where == "generation" else 0)
    task = asyncio.create_task(Agent(engine, dialect="hermes", tools=[hang]).run("go"))
    await until(lambda: engine.live if where == "generation" else hang.calls)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert idle(engine)
    assert (hang.cancellations, hang.closed) == (len(hang.calls), 1)


@pytest.mark.parametrize("kinds", ["run_started", "text_delta", "call_started"])
async def test_leaving_a_stream_early_leaves_nothing(kinds):
    hang = HangingTool()
    engine = ScriptedEngine([tool_call("hang", text="x"), ANSWER], latency_s=0.01)
    async with Agent(engine, dialect="hermes", tools=[hang]).stream("go") as events:
        async for event in events:
            if event.kind == kinds:
                break
    assert idle(engine)
    assert hang.closed == 1


def test_seeds_of_turns_differ_and_repeat():
    def seeds(seed: int) -> list[int]:
        engine = ScriptedEngine([ECHO, ANSWER])
        asyncio.run(Agent(engine, tools=[EchoTool()]).run("go", seed=seed))
        return [request.params.seed for request in engine.requests]

    assert seeds(1) == seeds(1)
    assert len({*seeds(1), *seeds(2)}) == 4


async def test_a_request_asks_for_no_more_than_fits():
    engine = ScriptedEngine([ECHO, ANSWER])
    sampling = SamplingParams(max_tokens=64, stop=("STOP",))
    trajectory = await execute(engine, tools=[EchoTool()], sampling=sampling, limits=Limits(max_tokens=80))
    first, second = (request.params for request in engine.requests)
    assert first.max_tokens == 64
    assert second.max_tokens == 80 - (len(engine.requests[1].ids) - trajectory.prompt_length)
    assert first.stop == ("STOP", "</echo>", "</answer>")
    assert replace(first, seed=0, max_tokens=1) == replace(second, seed=0, max_tokens=1)


# ---- the hot path


@pytest.mark.parametrize("dialect", ["xml", "hermes"])
async def test_long_results_are_encoded_outside_the_loop(dialect):
    where: dict[int, bool] = {}

    class Waiting(ByteTokenizer):
        """Encodes long texts only once the loop has turned, which it cannot while it is blocked."""

        def encode(self, text):
            size = len(text if isinstance(text, str) else text.text)
            outside = threading.current_thread() is not threading.main_thread()
            where[size] = outside
            if size > module.OFF_LOOP_CHARACTERS:
                turned = threading.Event()
                loop.call_soon_threadsafe(turned.set)
                assert not outside or turned.wait(10)
            return super().encode(text)

    loop = asyncio.get_running_loop()
    call = ECHO if dialect == "xml" else tool_call("echo", text="x")
    for size, outside in ((100, False), (module.OFF_LOOP_CHARACTERS + 1, True)):
        where.clear()
        engine = ScriptedEngine([call, ANSWER], tokenizer=Waiting())
        limits = Limits(max_tokens=100_000, max_observation_tokens=50_000)
        trajectory = await execute(engine, dialect=dialect, tools=[answering("y" * size)], limits=limits)
        assert trajectory.stop_reason is StopReason.ANSWER
        assert {where[length] for length in where if length >= size} == {outside}
        assert "y" * size in trajectory.response_text


async def test_a_run_that_is_stopped_while_a_result_is_encoded_ends_with_what_it_has():
    class Slow(ByteTokenizer):
        def encode(self, text):
            if len(text if isinstance(text, str) else text.text) > module.OFF_LOOP_CHARACTERS:
                loop.call_soon_threadsafe(run.stop, StopReason.DEADLINE)
                assert stopped.wait(10)
            return super().encode(text)

    loop, stopped = asyncio.get_running_loop(), threading.Event()
    engine = ScriptedEngine([ECHO, ANSWER], tokenizer=Slow())
    async with Agent(engine, tools=[answering("y" * 10_000)], limits=Limits(max_observation_tokens=50_000)) as agent:
        run = agent.start("go", seed=1)
        running = asyncio.create_task(run.execute())
        await until(lambda: run._stop_reason)
        stopped.set()
        trajectory = await running
    assert trajectory.stop_reason is StopReason.DEADLINE
    assert trajectory.segments[-1].source == "policy"
    assert idle(engine)


@pytest.mark.parametrize("dialect", ["xml", "hermes"])
async def test_what_waits_in_a_tool_holds_no_token_objects(dialect):
    # Ids above the small integers, which Python keeps anyway, in a prompt of its own and a long thought.
    hang = HangingTool()
    call = "<hang> x </hang>" if dialect == "xml" else tool_call("hang", text="x")
    said: list[weakref.ref[Generation]] = []

    class Remembering(ScriptedEngine):
        async def generate(self, *args, **options):
            generation = await super().generate(*args, **options)
            kept = Kept(**{f.name: getattr(generation, f.name) for f in fields(generation)})
            said.append(weakref.ref(kept))
            return kept

    class Kept(Generation):  # without slots, so that it can be watched
        pass

    engine = Remembering(["y" * 400 + call])
    async with Agent(engine, dialect=dialect, tools=[hang]) as agent:
        run = agent.start("go", seed=1)
        running = asyncio.create_task(run.execute())
        await until(lambda: hang.calls)
        gc.collect()
        assert [reference() for reference in said] == [None]
        assert len(run.recording.segments[-1].ids) > 400
        run.stop()
        assert (await running).stop_reason is StopReason.ABORTED


async def test_stopping_within_a_call_event_ends_the_only_call():
    hang = HangingTool()
    async with Agent(ScriptedEngine(["<hang> x </hang>"]), tools=[hang]) as agent:
        run = agent.start("go", emit=lambda event: run.stop() if isinstance(event, CallStarted) else None)
        trajectory = await run.execute()
    assert trajectory.stop_reason is StopReason.ABORTED
    assert hang.cancellations == len(hang.calls)
