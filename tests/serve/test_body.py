"""Reading bodies: what is wrong is named, and it is never the server's fault."""

from __future__ import annotations

import msgspec
import pytest

from icrl.serve.body import decode_body
from icrl.serve.chat_request import ChatRequest
from icrl.serve.problem import Problem
from icrl.serve.responses_request import ResponsesRequest

MESSAGES = b'"messages":[{"role":"user","content":"x"}]'


def refusal(raw: bytes, kind: type[msgspec.Struct] = ChatRequest) -> Problem:
    with pytest.raises(Problem) as refused:
        decode_body(raw, kind)
    assert refused.value.status == 400
    return refused.value


@pytest.mark.parametrize(
    ("raw", "param", "code", "message"),
    [
        (b'{%s,"temprature":1}' % MESSAGES, "temprature", "unknown_parameter", "Did you mean 'temperature'?"),
        (b"{}", "messages", "missing_required_parameter", "is missing"),
        (b'{"messages":1}', "messages", "invalid_type", "expected `array`, got `int`"),
        (b'{"messages":[{"role":"user"},{"role":"x"}]}', "messages[1].role", "invalid_type", "'x'"),
        (b'{%s,"seed":1.5}' % MESSAGES, "seed", "invalid_type", "got `float`"),
        (b'{%s,"seed":9223372036854775808}' % MESSAGES, "seed", "invalid_type", "<= 9223372036854775807"),
        (b'{%s,"temperature":1e999}' % MESSAGES, "temperature", "invalid_type", "out of range"),
        (b'{%s,"metadata":{"a":1}}' % MESSAGES, "metadata[...]", "invalid_type", "expected `str`, got `int`"),
        (b"null", None, "invalid_type", "expected `object`, got `null`"),
    ],
)
def test_what_does_not_fit_is_named(raw, param, code, message):
    problem = refusal(raw)
    assert (problem.param, problem.code) == (param, code)
    assert message in problem.message


@pytest.mark.parametrize(
    "raw",
    [
        *(b"", b" ", b"{", b'{"input":"x"}{}', b"{'a':1}", b"\xef\xbb\xbf{}", b'{"input":NaN}', b'{"input":"\xff"}'),
        *(b'{"input":"\xed\xa0\x80"}', b'{"input":"\xc0\x80"}', b'{"input":"\\ud800"}', b'{"input":"\\udc00\\ud800"}'),
        *(b'{"input":"a\nb"}', b'{"input":"x","reasoning":' + b'{"a":' * 100_000, b'{"input":01}', b'{"input":"x"'),
        b'{"input":"x","reasoning":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_001,
    ],
)
def test_what_is_no_json_is_refused(raw):
    assert refusal(raw, ResponsesRequest).code == "invalid_json"


def test_the_last_of_several_fields_of_one_name_counts():
    assert decode_body(b'{"input":"a","input":"b"}', ResponsesRequest).input == "b"


@pytest.mark.parametrize("depth", [10, 100, 500, 900, 990, 1_000, 2_000])
async def test_deep_data_is_taken_or_refused_by_every_route(serve, depth):
    client = await serve(["<answer> ok </answer>"])
    deep = "[" * depth + "]" * depth
    item = f'{{"role":"user","content":"x","extra":{deep}}}'
    for path, body in (
        ("/v1/responses", f'{{"input":[{item}]}}'),
        ("/v1/responses", f'{{"input":[{item}],"stream":true}}'),
        ("/v1/responses", f'{{"input":"x","reasoning":{{"a":{deep}}}}}'),
        ("/v1/chat/completions", f'{{"messages":[{item}]}}'),
        ("/v1/chat/completions", f'{{"messages":[{{"role":"user","content":{deep}}}]}}'),
    ):
        answer = await client.post(path, data=body, headers={"Content-Type": "application/json"})
        text = await answer.text()
        assert answer.status in (200, 400), text
        assert "server_error" not in text
