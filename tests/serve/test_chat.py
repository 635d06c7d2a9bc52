"""The chat protocol against a running server."""

from __future__ import annotations

import random

import pytest
from served import ask, events_of, finished_runs, joined
from watched import tool_call, until

from icrl.serve.keys import SERVICE
from icrl.testing import EchoTool, FailingTool, HangingTool, ScriptedEngine, fake_logprob
from icrl.types import Limits

USES_TOOL = ["<think> hm </think>\n<echo> a fox </echo>", "<think> so </think>\n<answer> Ein Füchslein. </answer>"]


async def chat(client, **fields):
    response = await client.post("/v1/chat/completions", json=ask(**fields))
    assert response.status == 200, await response.text()
    return await response.json()


async def chunks(client, **fields):
    response = await client.post("/v1/chat/completions", json=ask(stream=True, **fields))
    return await events_of(response)


async def test_an_answer_with_everything_that_led_to_it(serve):
    client = await serve(USES_TOOL)
    body = await chat(client, model="icrl")
    (choice,) = body["choices"]
    message = choice["message"]
    assert (body["object"], body["model"], choice["finish_reason"]) == ("chat.completion", "scripted", "stop")
    assert (message["role"], message["content"], message["refusal"]) == ("assistant", "Ein Füchslein.", None)
    assert message["reasoning"] == message["reasoning_content"] == "hm\nso"
    assert "tool_calls" not in message, "a client would run them"
    (call,) = message["icrl"]["tool_calls"]
    assert call.pop("wall_s") >= 0
    assert call == {
        "index": 0,
        "id": "0.0",
        "name": "echo",
        "arguments": {"text": "a fox"},
        "output": "a fox",
        "error": None,
    }
    assert message["icrl"]["stop_reason"] == "answer"
    assert body["id"] == f"chatcmpl-{message['icrl']['trajectory_id']}"


async def test_a_stream_tells_the_same(serve):
    client = await serve(USES_TOOL)
    streamed = await chunks(client, stream_options={"include_usage": True})
    whole = await chat(client)
    message = joined(streamed)
    assert len({chunk.data["id"] for chunk in streamed[:-1]}) == 1
    assert {chunk.data["object"] for chunk in streamed[:-1]} == {"chat.completion.chunk"}
    assert streamed[0].data["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert [chunk.data["usage"] for chunk in streamed[:-2]] == [None] * (len(streamed) - 2)
    assert streamed[-2].data["choices"] == []
    assert message["usage"] == whole["usage"]
    assert message["content"] == whole["choices"][0]["message"]["content"]
    pieces = [chunk.data["choices"][0]["delta"].get("content") for chunk in streamed[1:-2]]
    assert [piece for piece in pieces if piece] == [*"Ein", " F", *"üchslein."]


async def test_usage_only_comes_when_it_is_wanted(serve):
    client = await serve(["<answer> a </answer>"])
    streamed = await chunks(client)
    assert all("usage" not in chunk.data for chunk in streamed[:-1])


def scripts(generator, dialect):
    """Make up what a model says in its turns, tidy or not."""
    words = ["a", "é ", " 日本", "\n", "<b>", " < ", "END", " x"]
    said = lambda: "".join(generator.choices(words, k=generator.randint(0, 5)))  # noqa: E731
    turns = []
    for _ in range(generator.randint(0, 2)):
        call = f"<echo> {said()}a</echo>" if dialect == "xml" else tool_call("echo", text=said())
        turns.append(generator.choice(["", f"<think>{said()}</think>", said()]) + call)
    last = [
        f"<answer>{said()}</answer>",
        f"<think>{said()}</think><answer> {said()}</answer>",
        said(),
        f"<answer>{said()}",
    ]
    return [*turns, generator.choice(last)]


@pytest.mark.parametrize("dialect", ["xml", "hermes"])
async def test_streamed_or_not_it_is_the_same(serve, dialect):
    replies = ["warm-up"]
    client = await serve(ScriptedEngine(replies), agent={"dialect": dialect, "tools": [EchoTool()]})
    generator = random.Random(0)
    for _ in range(25):
        replies[:] = scripts(generator, dialect)
        fields = {
            "n": generator.choice([1, 2]),
            "logprobs": generator.choice([True, False]),
            "stop": generator.choice([None, "END", ["é a", "x"]]),
            "max_tokens": generator.choice([None, 40]),
        }
        whole = await chat(client, **fields)
        streamed = await chunks(client, stream_options={"include_usage": True}, **fields)
        assert streamed[-2].data["usage"] == whole["usage"]
        for choice in whole["choices"]:
            message, told = choice["message"], joined(streamed, choice["index"])
            assert told["content"] == message["content"]
            assert told["reasoning"] == told["reasoning_content"] == (message["reasoning"] or "")
            assert told["finish_reason"] == choice["finish_reason"]
            assert told["logprobs"] == choice["logprobs"]
            assert told["icrl"]["stop_reason"] == message["icrl"]["stop_reason"]
            untimed = [{k: v for k, v in call.items() if k != "wall_s"} for call in message["icrl"]["tool_calls"]]
            assert [{k: v for k, v in call.items() if k != "wall_s"} for call in told["calls"].values()] == untimed


async def test_usage_is_exact(serve, service_of):
    client = await serve(USES_TOOL)
    ended = finished_runs(service_of(client))
    usage = (await chat(client, n=2))["usage"]
    one, two = ended
    observed = [len(t.ids) - t.prompt_length - t.sampled_tokens for t in (one, two)]
    assert usage["prompt_tokens"] == one.prompt_length
    assert usage["completion_tokens"] == one.sampled_tokens + two.sampled_tokens
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["completion_tokens_details"] == {"reasoning_tokens": 2 * len(" hm " + " so ")}
    assert usage["icrl"]["observed_tokens"] == sum(observed) > 0


async def test_choices_have_streams_of_their_own(serve):
    engine = ScriptedEngine(["<answer> a </answer>"])
    client = await serve(engine)
    body = await chat(client, n=3, seed=5)
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
    assert len({choice["message"]["icrl"]["trajectory_id"] for choice in body["choices"]}) == 3
    several = [request.params.seed for request in engine.requests[-3:]]
    assert len(set(several)) == 3
    assert len({request.ids for request in engine.requests[-3:]}) == 1
    await chat(client, seed=5)
    assert engine.requests[-1].params.seed == several[0], "the first choice is what a single one would be"
    await chat(client, n=3, seed=5)
    assert [request.params.seed for request in engine.requests[-3:]] == several
    await chat(client, n=2)
    assert not {request.params.seed for request in engine.requests[-2:]} & set(several)


async def test_sampling_reaches_the_engine(serve):
    engine = ScriptedEngine(["<answer> a </answer>"])
    client = await serve(engine, agent={"tools": [], "limits": Limits(max_tokens=50)})
    await chat(client, temperature=0.5, top_p=0.25, max_tokens=20)
    params = engine.requests[-1].params
    assert (params.temperature, params.top_p, params.max_tokens) == (0.5, 0.25, 20)
    await chat(client, max_completion_tokens=10_000)
    params = engine.requests[-1].params
    assert (params.temperature, params.top_p, params.max_tokens) == (1.0, 1.0, 50)


async def test_logprobs_belong_to_the_words(serve, service_of):
    client = await serve(USES_TOOL)
    ended = finished_runs(service_of(client))
    (choice,) = (await chat(client, logprobs=True))["choices"]
    listed = choice["logprobs"]["content"]
    segment = ended[0].segments[-1]
    start = segment.text.encode().index("Ein Füchslein.".encode())
    before = sum(len(s.ids) for s in ended[0].segments[:-1])
    assert [entry["logprob"] for entry in listed] == [
        fake_logprob(token, before + start + i) for i, token in enumerate("Ein Füchslein.".encode())
    ]
    assert "".join(entry["token"] for entry in listed).replace("\ufffd\ufffd", "ü") == "Ein Füchslein."
    assert [entry["bytes"] for entry in listed[4:8]] == [[70], None, None, [99]]
    assert {tuple(entry["top_logprobs"]) for entry in listed} == {()}
    assert (await chat(client))["choices"][0]["logprobs"] is None


async def test_words_of_several_turns_have_logprobs(serve):
    client = await serve(
        ["I ask. " + tool_call("echo", text="x"), "Done."], agent={"dialect": "hermes", "tools": [EchoTool()]}
    )
    (choice,) = (await chat(client, logprobs=True))["choices"]
    assert choice["message"]["content"] == "I ask.\n\nDone."
    assert "".join(entry["token"] for entry in choice["logprobs"]["content"]) == "I ask.Done."


@pytest.mark.parametrize(
    ("stop", "content"),
    [
        ("END", "one "),
        (["zwei", "END"], "one "),
        ("two", "one END "),
        ("</answer>", "one END two"),
        ("hm", "one END two"),
    ],
)
async def test_stop_strings_end_the_answer(serve, stop, content):
    client = await serve(["<think> hm </think><answer> one END two </answer>"])
    body = await chat(client, stop=stop, logprobs=True)
    (choice,) = body["choices"]
    assert choice["message"]["content"] == content
    assert choice["finish_reason"] == "stop"
    assert "".join(entry["token"] for entry in choice["logprobs"]["content"]) == content
    assert joined(await chunks(client, stop=stop))["content"] == content


async def test_a_stop_string_ends_the_engines_work(serve):
    engine = ScriptedEngine(["<answer> one END" + " and more" * 400 + "</answer>"])
    client = await serve(engine)
    engine._latency_s = 36.0  # a hundredth of a second a token, once it has answered its warm-up
    body = await chat(client, stop="e E", max_tokens=4000)
    assert body["choices"][0]["message"]["content"] == "on"
    assert body["choices"][0]["finish_reason"] == "stop"
    assert body["usage"]["completion_tokens"] < 20
    assert not engine.live


FINISHES = [
    ("answer", "stop", ["<answer> a </answer>"], {}),
    ("end_of_turn", "stop", ["plain"], {}),
    ("max_tokens", "length", ["<answer> " + "long " * 50], {"limits": Limits(max_tokens=40)}),
    ("max_turns", "length", USES_TOOL, {"limits": Limits(max_turns=1)}),
    ("max_tool_calls", "length", USES_TOOL, {"limits": Limits(max_tool_calls=0)}),
    ("deadline", "length", ["<hang> x </hang>"], {"limits": Limits(deadline_s=0.05), "tools": [HangingTool()]}),
]


@pytest.mark.parametrize(("stop_reason", "finish_reason", "replies", "agent"), FINISHES)
async def test_every_end_has_a_finish_reason(serve, stop_reason, finish_reason, replies, agent):
    client = await serve(replies, agent={"tools": [EchoTool()]} | agent)
    (choice,) = (await chat(client))["choices"]
    assert (choice["finish_reason"], choice["message"]["icrl"]["stop_reason"]) == (finish_reason, stop_reason)
    told = joined(await chunks(client))
    assert (told["finish_reason"], told["icrl"]["stop_reason"]) == (finish_reason, stop_reason)


async def test_a_full_context_is_a_length(serve):
    client = await serve(ScriptedEngine(["<answer> " + "long " * 50], context_limit=200))
    (choice,) = (await chat(client))["choices"]
    assert (choice["finish_reason"], choice["message"]["icrl"]["stop_reason"]) == ("length", "context_limit")
    assert choice["message"]["content"].startswith("long long")


async def test_a_run_that_was_ended_from_outside_stops_with_what_it_has(serve, service_of):
    tool = HangingTool()
    client = await serve(["<think> hm </think><hang> x </hang>"], agent={"tools": [tool]})
    response = await client.post("/v1/chat/completions", json=ask(stream=True))
    await until(lambda: tool.calls)
    for run in service_of(client).live.values():
        run.stop()
    told = joined(await events_of(response))
    assert (told["finish_reason"], told["icrl"]["stop_reason"], told["reasoning"]) == ("stop", "aborted", "hm")
    assert tool.cancellations == 1


async def test_a_tool_that_fails_is_reported(serve):
    client = await serve(["<fail> x </fail>", "<answer> no </answer>"], agent={"tools": [FailingTool()]})
    (choice,) = (await chat(client))["choices"]
    (call,) = choice["message"]["icrl"]["tool_calls"]
    assert (call["error"], call["output"]) == ("ToolError", "ToolError: it failed")
    assert choice["message"]["content"] == "no"


async def test_a_conversation_reads_as_the_model_wrote_it(serve):
    engine = ScriptedEngine(["<answer> b </answer>"])
    client = await serve(engine)
    first = (await chat(client, text="First?"))["choices"][0]["message"]
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "First?"},
        first,
        {"role": "user", "content": "Second?"},
    ]
    response = await client.post("/v1/chat/completions", json={"messages": messages})
    assert response.status == 200
    text = engine.tokenizer.decode(engine.requests[-1].ids)
    assert "Be brief.\n\nQuestion: First?\nassistant\n<answer> b </answer>\nuser\nQuestion: Second?\n" in text


async def test_the_conversation_has_to_fit(serve):
    client = await serve(ScriptedEngine(["<answer> a </answer>"], context_limit=300))
    response = await client.post("/v1/chat/completions", json=ask("long " * 100))
    error = (await response.json())["error"]
    assert (response.status, error["code"], error["param"]) == (400, "context_length_exceeded", "messages")
    assert "300" in error["message"]


async def test_another_model_is_not_found(serve):
    client = await serve(["<answer> a </answer>"])
    for stream in (False, True):
        response = await client.post("/v1/chat/completions", json=ask(model="scriptet", stream=stream))
        error = (await response.json())["error"]
        assert (response.status, error["param"], error["code"]) == (404, "model", "model_not_found")
        assert "Did you mean 'scripted'?" in error["message"]


async def test_models_are_listed(serve, service_of):
    client = await serve(["<answer> a </answer>"], name="mine")
    listed = await (await client.get("/v1/models")).json()
    (card,) = listed["data"]
    assert (card["id"], card["object"], [tool["name"] for tool in card["icrl"]["tools"]]) == ("mine", "model", ["echo"])
    for name in ("mine", "icrl"):
        assert (await (await client.get(f"/v1/models/{name}")).json())["id"] == name
    assert (await client.get("/v1/models/other/one")).status == 404
    assert client.server.app[SERVICE] is service_of(client)
