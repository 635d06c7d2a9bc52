"""What a chat request may say, and how it is told what is wrong."""

from __future__ import annotations

import pytest

from icrl.serve.body import decode_body
from icrl.serve.chat_request import ChatRequest, read_ask
from icrl.serve.config import AdmissionConfig
from icrl.serve.problem import Problem
from icrl.types import Message, ToolCall
from icrl.wire import encode

HELLO = {"role": "user", "content": "Hello"}


def read(**fields):
    return read_ask(decode_body(encode({"messages": [HELLO]} | fields), ChatRequest), AdmissionConfig(max_messages=8))


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [HELLO] * 9}, "messages"),
        ({"messages": "Hello"}, "messages"),
        ({"messages": [HELLO, {"role": "assistant", "content": "Hi"}]}, "messages"),
        ({"messages": [{"role": "system", "content": "Be brief."}]}, "messages"),
        ({"messages": [{"role": "user", "content": ""}]}, "messages[0].content"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [HELLO, {"role": "system", "content": []}, HELLO]}, "messages[1].content"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "god", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
        (
            {"messages": [{"role": "user", "content": "x", "tool_calls": [{"id": "1", "function": {"name": "f"}}]}]},
            "messages[0].tool_calls",
        ),
        (
            {
                "messages": [
                    {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "[1]"}}]},
                    HELLO,
                ]
            },
            "messages[0].tool_calls[0].function.arguments",
        ),
        ({"n": 0}, "n"),
        ({"n": 9}, "n"),
        ({"n": True}, "n"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"max_tokens": 1, "max_completion_tokens": 1}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"seed": "x"}, "seed"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a", ""]}, "stop"),
        ({"stop": "x" * 257}, "stop"),
        ({"stop": 3}, "stop"),
        ({"logprobs": 1}, "logprobs"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"presence_penalty": -1}, "presence_penalty"),
        ({"response_format": {"type": "json_object"}}, "response_format.type"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"modalities": ["audio"]}, "modalities[0]"),
        ({"metadata": {"a": 1}}, "metadata[...]"),
        ({"max_token": 3}, "max_token"),
    ],
)
def test_a_field_that_is_wrong_is_named(fields, param):
    with pytest.raises(Problem) as raised:
        read(**fields)
    assert raised.value.status == 400
    assert raised.value.param is not None
    assert raised.value.param.startswith(param)
    assert raised.value.message.startswith(raised.value.param)


def test_an_unknown_field_is_told_its_nearest_name():
    with pytest.raises(Problem, match="Did you mean 'max_tokens'") as raised:
        read(max_token=3)
    assert raised.value.code == "unknown_parameter"


def test_what_is_not_said_has_openais_defaults():
    ask, choices = read()
    assert (ask.sampling.temperature, ask.sampling.top_p, choices) == (1.0, 1.0, 1)
    assert (ask.seed, ask.stop, ask.max_tokens, ask.tool_choice, dict(ask.metadata)) == (None, (), None, "auto", {})
    assert ask.messages == (Message(role="user", content="Hello"),)


def test_every_field_means_something():
    ask, choices = read(
        temperature=0, top_p=0.5, seed=-3, stop=["a", "b"], max_completion_tokens=7, n=8, metadata={"a": "b"}
    )
    assert (ask.sampling.temperature, ask.sampling.top_p, choices) == (0.0, 0.5, 8)
    assert (ask.seed, ask.stop, ask.max_tokens, dict(ask.metadata)) == (-3, ("a", "b"), 7, {"a": "b"})
    assert read(stop="x")[0].stop == ("x",)
    assert read(max_tokens=9)[0].max_tokens == 9


@pytest.mark.parametrize(
    "fields",
    [
        {"user": "me", "store": True, "service_tier": "auto", "safety_identifier": "x", "verbosity": "low"},
        {"prompt_cache_key": "k", "prompt_cache_retention": "24h", "parallel_tool_calls": False},
        {"reasoning_effort": "low", "modalities": ["text"], "response_format": {"type": "text"}, "top_logprobs": 0},
        {"frequency_penalty": 0, "presence_penalty": 0.0, "stream_options": None, "temperature": None, "stop": None},
    ],
)
def test_harmless_fields_are_accepted(fields):
    assert read(**fields) == read()


def test_a_conversation_is_read_as_it_was():
    asks = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": "é"}'}}],
        "reasoning_content": "hm",
        "refusal": None,
        "icrl": {"tool_calls": []},
    }
    parts = [{"type": "text", "text": "two "}, {"type": "text", "text": "parts"}]
    ask, _ = read(
        messages=[
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": parts, "name": "Ann"},
            asks,
            {"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": "told"}]},
        ]
    )
    assert ask.messages == (
        Message(role="system", content="Be brief."),
        Message(role="user", content="two parts"),
        Message(role="assistant", content="", tool_calls=(ToolCall(name="f", arguments={"a": "é"}, id="1"),)),
        Message(role="tool", content="told", tool_call_id="1"),
    )
