"""The Responses protocol against a running server."""

from __future__ import annotations

import random

import pytest
from served import events_of, finished_runs
from watched import tool_call, until

from icrl.serve.responses import STORE
from icrl.testing import EchoTool, HangingTool, ScriptedEngine
from icrl.types import Limits, Message

USES_TOOL = ["<think> hm </think>\n<echo> a fox </echo>", "<think> so </think>\n<answer> Ein Füchslein. </answer>"]
ANSWERS = ["<answer> a </answer>"]


async def create(client, text="Who?", **fields):
    response = await client.post("/v1/responses", json={"input": text, **fields})
    assert response.status == 200, await response.text()
    return await response.json()


async def streamed(client, text="Who?", **fields):
    events = await events_of(await client.post("/v1/responses", json={"input": text, "stream": True, **fields}))
    assert all(event.event == event.data["type"] for event in events)
    assert [event.data["sequence_number"] for event in events] == list(range(len(events)))
    return events


def plain(value):
    """Forget names and times, which differ between two equal responses."""
    if isinstance(value, dict):
        left_out = ("id", "created_at", "wall_s", "trajectory_id", "previous_response_id")
        return {key: plain(item) for key, item in value.items() if key not in left_out}
    return [plain(item) for item in value] if isinstance(value, list) else value


def text_of(response):
    parts = [part for item in response["output"] if item["type"] == "message" for part in item["content"]]
    return "".join(part["text"] for part in parts)


async def test_an_answer_with_everything_that_led_to_it(serve):
    client = await serve(USES_TOOL)
    response = await create(client, model="icrl", metadata={"a": "b"}, max_output_tokens=500, temperature=0)
    first, call, second, message = response["output"]
    assert (response["object"], response["status"], response["model"]) == ("response", "completed", "scripted")
    assert [first["content"][0]["text"], second["content"][0]["text"]] == ["hm", "\nso"]
    assert (call["type"], call["name"], call["output"], call["error"]) == ("mcp_call", "echo", "a fox", None)
    assert call["arguments"] == '{"text":"a fox"}'
    assert (message["role"], message["content"][0]["text"]) == ("assistant", "Ein Füchslein.")
    assert [item["status"] for item in response["output"]] == ["completed"] * 4
    assert len({item["id"] for item in response["output"]}) == 4
    assert (response["metadata"], response["max_output_tokens"], response["temperature"]) == ({"a": "b"}, 500, 0)
    assert (response["error"], response["incomplete_details"]) == (None, None)
    assert response["id"] == f"resp_{response['icrl']['trajectory_id']}"


async def test_a_stream_tells_the_same(serve):
    client = await serve(USES_TOOL)
    events = await streamed(client)
    kinds = [event.event.removeprefix("response.") for event in events]
    assert kinds[:3] == ["created", "in_progress", "output_item.added"]
    assert kinds[-1] == "completed"
    assert "".join(e.data["delta"] for e in events if e.event == "response.output_text.delta") == "Ein Füchslein."
    assert {e.data["delta"] for e in events if e.event.endswith(".delta")} >= {"ü", " F"}
    assert plain(events[-1].data["response"]) == plain(await create(client))
    done = [e.data["item"] for e in events if e.event == "response.output_item.done"]
    assert done == events[-1].data["response"]["output"]


def scripts(generator, dialect):
    words = ["a", "é ", " 日本", "\n", "<b>", " < ", " x"]
    said = lambda: "".join(generator.choices(words, k=generator.randint(0, 5)))  # noqa: E731
    turns = []
    for _ in range(generator.randint(0, 2)):
        call = f"<echo> {said()}a</echo>" if dialect == "xml" else tool_call("echo", text=said()) * 2
        turns.append(generator.choice(["", f"<think>{said()}</think>", said()]) + call)
    return [*turns, generator.choice([f"<answer>{said()}</answer>", f"<think>{said()}</think>{said()}", said()])]


@pytest.mark.parametrize("dialect", ["xml", "hermes"])
async def test_streamed_or_not_it_is_the_same(serve, dialect):
    replies = ["warm-up"]
    client = await serve(ScriptedEngine(replies), agent={"dialect": dialect, "tools": [EchoTool()]})
    generator = random.Random(1)
    for _ in range(25):
        replies[:] = scripts(generator, dialect)
        limit = generator.choice([None, 40])
        whole = await create(client, max_output_tokens=limit)
        events = await streamed(client, max_output_tokens=limit)
        assert events[-1].event == f"response.{whole['status']}"
        assert plain(events[-1].data["response"]) == plain(whole)


async def test_usage_is_exact(serve, service_of):
    client = await serve(USES_TOOL)
    ended = finished_runs(service_of(client))
    usage = (await create(client))["usage"]
    (trajectory,) = ended
    assert usage["input_tokens"] == trajectory.prompt_length
    assert usage["output_tokens"] == trajectory.sampled_tokens
    assert usage["total_tokens"] == trajectory.prompt_length + trajectory.sampled_tokens
    assert usage["output_tokens_details"]["reasoning_tokens"] == len(" hm " + " so ")
    observed = len(trajectory.ids) - trajectory.prompt_length - trajectory.sampled_tokens
    assert usage["icrl"]["observed_tokens"] == observed


async def test_sampling_reaches_the_engine(serve):
    engine = ScriptedEngine(ANSWERS)
    client = await serve(engine)
    await create(client, temperature=0.5, top_p=0.25, max_output_tokens=20, seed=3)
    first = engine.requests[-1].params
    await create(client, seed=3)
    assert (first.temperature, first.top_p, first.max_tokens) == (0.5, 0.25, 20)
    assert engine.requests[-1].params.seed == first.seed


ENDS = [
    ("end_of_turn", "completed", ["plain"], {}, {}),
    ("max_tokens", "incomplete", ["<answer> " + "long " * 50], {}, {"max_output_tokens": 40}),
    ("max_turns", "incomplete", USES_TOOL, {"limits": Limits(max_turns=1)}, {}),
    ("max_tool_calls", "incomplete", USES_TOOL, {}, {"max_tool_calls": 0}),
    ("deadline", "incomplete", ["<hang> x </hang>"], {"limits": Limits(deadline_s=0.05), "tools": [HangingTool()]}, {}),
]


@pytest.mark.parametrize(("stop_reason", "status", "replies", "agent", "fields"), ENDS)
async def test_every_end_has_a_status(serve, stop_reason, status, replies, agent, fields):
    client = await serve(replies, agent={"tools": [EchoTool()]} | agent)
    response = await create(client, **fields)
    assert (response["status"], response["icrl"]["stop_reason"]) == (status, stop_reason)
    assert response["incomplete_details"] == ({"reason": "max_output_tokens"} if status == "incomplete" else None)


async def test_words_that_were_cut_off_are_incomplete(serve):
    client = await serve(["<answer> " + "long " * 50])
    response = await create(client, max_output_tokens=40)
    assert [item["status"] for item in response["output"]] == ["incomplete"]
    assert text_of(response).startswith("long long")


async def test_a_conversation_goes_on(serve, service_of):
    engine = ScriptedEngine(["<echo> a fox </echo>", "<answer> A fox. </answer>"])
    client = await serve(engine)
    ended = finished_runs(service_of(client))
    first = await create(client, "Who?", instructions="Be brief.")
    second = await create(client, "Why?", previous_response_id=first["id"])
    assert second["previous_response_id"] == first["id"]
    asked = ended[1].task.messages
    assert [(m.role, m.content) for m in asked] == [
        ("user", "Who?"),
        ("assistant", ""),
        ("tool", "a fox"),
        ("assistant", "A fox."),
        ("user", "Why?"),
    ], "instructions hold for one request"
    third = await create(client, "And?", previous_response_id=second["id"], instructions="Be long.")
    assert ended[2].task.messages[0] == Message(role="system", content="Be long.")
    assert ended[2].task.messages[1 : len(asked) + 1] == asked
    assert third["status"] == "completed"


async def test_the_model_reads_again_what_it_had(serve, service_of):
    client = await serve(["<echo> a fox </echo>", "<answer> A fox. </answer>"])
    ended = finished_runs(service_of(client))
    first = await create(client, "Who?")
    await create(client, "Why?", previous_response_id=first["id"])
    before, after = ended
    assert after.ids[: len(before.ids)] == before.ids


async def test_a_response_is_stored_before_its_stream_ends(serve):
    client = await serve(ANSWERS)
    response = await client.post("/v1/responses", json={"input": "Who?", "stream": True})
    buffer = b""
    while b"response.completed" not in buffer:
        buffer += await response.content.readany()
    response.close()  # as clients do that have seen the last event
    assert len(client.server.app[STORE]) == 1


async def test_stored_responses_can_be_read_and_deleted(serve):
    client = await serve(USES_TOOL)
    response = await create(client, "Who?")
    at = f"/v1/responses/{response['id']}"
    assert await (await client.get(at)).json() == response
    listed = await (await client.get(f"{at}/input_items")).json()
    assert [(item["role"], item["content"]) for item in listed["data"]] == [("user", "Who?")]
    assert (listed["first_id"], listed["has_more"]) == (listed["data"][0]["id"], False)
    assert (await (await client.get(f"{at}/tokens")).json())["stop_reason"] == "answer"
    deleted = await (await client.delete(at)).json()
    assert deleted == {"id": response["id"], "object": "response", "deleted": True}
    for call in (client.get(at), client.delete(at), client.get(f"{at}/input_items"), client.post(f"{at}/cancel")):
        answer = await call
        assert answer.status == 404
        assert (await answer.json())["error"]["code"] == "response_not_found"


async def test_nothing_is_stored_unless_it_may_be(serve):
    client = await serve(ANSWERS)
    response = await create(client, store=False)
    assert response["store"] is False
    assert (await client.get(f"/v1/responses/{response['id']}")).status == 404
    again = await client.post("/v1/responses", json={"input": "x", "previous_response_id": response["id"]})
    error = (await again.json())["error"]
    assert (again.status, error["param"], error["code"]) == (404, "previous_response_id", "response_not_found")


async def test_a_response_is_its_owners_alone(serve, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("mine yours")
    client = await serve(ANSWERS, api_key_file=keys)
    mine, yours = ({"Authorization": f"Bearer {key}"} for key in ("mine", "yours"))
    response = await (await client.post("/v1/responses", json={"input": "Who?"}, headers=mine)).json()
    at = f"/v1/responses/{response['id']}"
    for call in (client.get, client.delete):
        assert (await call(at, headers=yours)).status == 404
    for path in (f"{at}/input_items", f"{at}/tokens"):
        assert (await client.get(path, headers=yours)).status == 404
    assert (await client.post(f"{at}/cancel", headers=yours)).status == 404
    body = {"input": "x", "previous_response_id": response["id"]}
    assert (await client.post("/v1/responses", json=body, headers=yours)).status == 404
    assert (await client.post("/v1/responses", json=body, headers=mine)).status == 200
    assert (await client.get(at)).status == 401


async def begin(client, tool, **options):
    """Start a stream and wait until its tool works; return the response in flight, and its name."""
    response = await client.post("/v1/responses", json={"input": "Who?", "stream": True}, **options)
    await until(lambda: tool.calls)
    (name,) = [name for name, _ in live(client).items()]
    return response, name


def live(client):
    from icrl.serve.responses import LIVE

    return client.server.app[LIVE]


async def test_a_response_in_the_making_can_be_read_and_cancelled(serve):
    tool = HangingTool()
    client = await serve(["<think> hm </think><hang> x </hang>"], agent={"tools": [tool]})
    response, name = await begin(client, tool)
    so_far = await (await client.get(f"/v1/responses/{name}")).json()
    assert (so_far["status"], [item["status"] for item in so_far["output"]]) == (
        "in_progress",
        ["completed", "in_progress"],
    )
    cancelled = await (await client.post(f"/v1/responses/{name}/cancel")).json()
    assert (cancelled["id"], cancelled["object"], cancelled["status"]) == (name, "response", "cancelled")
    events = await events_of(response)
    assert events[-1].event == "response.incomplete"
    ended = events[-1].data["response"]
    assert (ended["status"], [item["status"] for item in ended["output"]]) == ("cancelled", ["completed", "incomplete"])
    assert ended["icrl"]["stop_reason"] == "aborted"
    assert tool.cancellations == 1
    assert await (await client.get(f"/v1/responses/{name}")).json() == ended
    assert live(client) == {}


async def test_what_is_finished_cannot_be_cancelled(serve):
    client = await serve(ANSWERS)
    response = await create(client)
    answer = await client.post(f"/v1/responses/{response['id']}/cancel")
    assert (answer.status, (await answer.json())["error"]["code"]) == (400, "response_finished")


async def test_only_its_owner_can_cancel_a_response(serve, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("mine yours")
    tool = HangingTool()
    client = await serve(["<hang> x </hang>"], agent={"tools": [tool]}, api_key_file=keys)
    mine, yours = ({"Authorization": f"Bearer {key}"} for key in ("mine", "yours"))
    response, name = await begin(client, tool, headers=mine)
    for call in (
        client.post(f"/v1/responses/{name}/cancel", headers=yours),
        client.get(f"/v1/responses/{name}", headers=yours),
    ):
        assert (await call).status == 404
    assert tool.cancellations == 0
    assert (await client.post(f"/v1/responses/{name}/cancel", headers=mine)).status == 200
    await events_of(response)


async def test_a_client_that_left_leaves_nothing_behind(serve):
    tool = HangingTool()
    client = await serve(["<hang> x </hang>"], agent={"tools": [tool]})
    response, _ = await begin(client, tool)
    response.close()
    await until(lambda: not live(client))
    assert len(client.server.app[STORE]) == 0


async def test_errors_name_the_fields_of_this_protocol(serve):
    client = await serve(ScriptedEngine(ANSWERS, context_limit=300))
    cases = [
        ({"input": "long " * 100}, 400, "input", "context_length_exceeded"),
        ({"input": []}, 400, "input", None),
        ({"input": "x", "model": "other"}, 404, "model", "model_not_found"),
        ({"input": "x", "previous_response_id": "resp_0"}, 404, "previous_response_id", "response_not_found"),
        ({"input": "x", "max_tokens": 3}, 400, "max_tokens", "unknown_parameter"),
    ]
    for body, status, param, code in cases:
        response = await client.post("/v1/responses", json=body)
        error = (await response.json())["error"]
        assert (response.status, error["param"], error["code"]) == (status, param, code)
