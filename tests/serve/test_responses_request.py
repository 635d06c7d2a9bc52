"""What a Responses request may say, and how it is told what is wrong."""

from __future__ import annotations

import pytest

from icrl.serve.body import decode_body
from icrl.serve.config import AdmissionConfig
from icrl.serve.problem import Problem
from icrl.serve.responses_request import ResponsesRequest, read_ask
from icrl.types import Message, ToolCall
from icrl.wire import encode

USER = {"role": "user", "content": "Hello"}
EARLIER = (Message(role="user", content="First?"), Message(role="assistant", content="One."))


def read(*, earlier=(), **fields):
    body = decode_body(encode({"input": "Hello"} | fields), ResponsesRequest)
    return read_ask(body, earlier, AdmissionConfig(max_messages=4))


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": 3}, "input"),
        ({"input": [USER] * 5}, "input"),
        ({"input": ["Hello"]}, "input[0]"),
        ({"input": [{"role": "user"}]}, "input[0]"),
        ({"input": [{"role": "god", "content": "x"}]}, "input[0]"),
        ({"input": [{"role": "user", "content": ""}]}, "input[0].content"),
        ({"input": [USER, {"type": "item_reference", "id": "x"}]}, "input[1]"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input[0]"),
        ({"input": [{"role": "assistant", "content": "Hi"}]}, "input"),
        ({"input": [{"type": "reasoning", "id": "rs_1", "summary": []}]}, "input"),
        (
            {"input": [{"type": "function_call", "call_id": "1", "name": "f", "arguments": "x"}, USER]},
            "input[0].arguments",
        ),
        ({"input": [{"type": "mcp_call", "name": "f", "arguments": "3", "output": "x"}, USER]}, "input[0].arguments"),
        ({"temperature": 3}, "temperature"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"max_tool_calls": -1}, "max_tool_calls"),
        ({"seed": 1.5}, "seed"),
        ({"stream": 1}, "stream"),
        ({"background": True}, "background"),
        ({"truncation": "auto"}, "truncation"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format.type"),
        ({"instructions": 3}, "instructions"),
        ({"previous_response_id": 3}, "previous_response_id"),
        ({"metadata": {"a": None}}, "metadata"),
        ({"messages": []}, "messages"),
    ],
)
def test_a_field_that_is_wrong_is_named(fields, param):
    with pytest.raises(Problem) as raised:
        read(**fields)
    assert raised.value.status == 400
    assert raised.value.param is not None
    assert raised.value.param.startswith(param)
    assert raised.value.message.startswith(raised.value.param)


def test_the_input_is_needed():
    with pytest.raises(Problem, match="input: is missing"):
        decode_body(b"{}", ResponsesRequest)


def test_the_whole_conversation_is_bounded():
    assert len(read(earlier=EARLIER, input=[USER, USER]).messages) == 4
    with pytest.raises(Problem, match="more than 4 messages"):
        read(earlier=EARLIER, input=[USER] * 3)


def test_what_is_not_said_has_openais_defaults():
    ask = read()
    assert (ask.sampling.temperature, ask.sampling.top_p, ask.seed) == (1.0, 1.0, None)
    assert (ask.max_tokens, ask.max_tool_calls, ask.tool_choice, ask.place) == (None, None, "auto", "input")


def test_every_field_means_something():
    ask = read(temperature=0, top_p=0.5, seed=7, max_output_tokens=9, max_tool_calls=0, metadata={"a": "b"})
    assert (ask.sampling.temperature, ask.sampling.top_p, ask.seed) == (0.0, 0.5, 7)
    assert (ask.max_tokens, ask.max_tool_calls, dict(ask.metadata)) == (9, 0, {"a": "b"})


def test_harmless_fields_are_accepted():
    fields = {"include": [], "parallel_tool_calls": True, "reasoning": {"effort": "low"}, "user": "me", "store": False}
    fields |= {"text": {"format": {"type": "text"}, "verbosity": "low"}, "truncation": "disabled", "background": False}
    assert read(**fields) == read()


def test_instructions_stand_before_the_conversation():
    assert [m.content for m in read(earlier=EARLIER, instructions="Be brief.").messages] == [
        "Be brief.",
        "First?",
        "One.",
        "Hello",
    ]


def test_items_of_an_earlier_output_may_come_back():
    items = [
        USER,
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [], "status": "completed"},
        {
            "type": "mcp_call",
            "id": "mcp_1",
            "name": "echo",
            "arguments": '{"text": "x"}',
            "output": "x",
            "server_label": "icrl",
            "error": None,
        },
        {
            "type": "mcp_call",
            "id": "mcp_2",
            "name": "echo",
            "arguments": "{}",
            "output": None,
            "error": {"content": "no"},
        },
        {"type": "mcp_call", "id": "mcp_3", "name": "echo", "arguments": "{}", "output": None, "status": "incomplete"},
        {"type": "message", "id": "m", "role": "assistant", "content": [{"type": "output_text", "text": "It is x."}]},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": '{"a": 1}'},
        {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_text", "text": "done"}]},
    ]
    ask = read_ask(decode_body(encode({"input": items}), ResponsesRequest), (), AdmissionConfig())
    assert ask.messages == (
        Message(role="user", content="Hello"),
        Message(role="assistant", content="", tool_calls=(ToolCall(name="echo", arguments={"text": "x"}, id="mcp_1"),)),
        Message(role="tool", content="x", tool_call_id="mcp_1"),
        Message(role="assistant", content="", tool_calls=(ToolCall(name="echo", id="mcp_2"),)),
        Message(role="tool", content="no", tool_call_id="mcp_2"),
        Message(role="assistant", content="It is x.", tool_calls=(ToolCall(name="f", arguments={"a": 1}, id="c"),)),
        Message(role="tool", content="done", tool_call_id="c"),
    )
