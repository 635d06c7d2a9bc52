"""Requests that no client means well by: seeded, so that a run can be repeated."""

from __future__ import annotations

import json
import random
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

ROUTES = {
    "/v1/chat/completions": {
        "model": "icrl",
        "messages": [{"role": "system", "content": "Be short."}, {"role": "user", "content": "hi"}],
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": 1,
        "n": 1,
        "stop": ["x"],
        "max_tokens": 40,
        "stream": False,
        "logprobs": True,
        "stream_options": {"include_usage": True},
        "metadata": {"a": "b"},
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
        "tool_choice": "auto",
    },
    "/v1/responses": {
        "model": "icrl",
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
            {"type": "reasoning", "summary": []},
            {"type": "mcp_call", "name": "echo", "arguments": '{"text": "a"}', "output": "a", "id": "m"},
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c", "output": "1"},
            {"type": "message", "role": "user", "content": "go on"},
        ],
        "instructions": "Be short.",
        "previous_response_id": None,
        "stream": False,
        "max_output_tokens": 40,
        "seed": 1,
        "text": {"format": {"type": "text"}},
        "tools": [{"type": "function", "name": "f", "parameters": {"type": "object"}}],
    },
    "/v1/trajectories": {"query": "hi", "n": 2, "seed": 1, "temperature": 0.5, "top_p": 1.0, "max_tokens": 40},
}
"""Routes that take a body, with a body that touches most fields."""
PLACES = [
    "/",
    "/health",
    "/ready",
    "/metrics",
    "/openapi.json",
    "/v1/models",
    "/v1/models/icrl",
    "/v1/responses/resp_x",
    *(
        "/v1/responses/resp_x/cancel",
        "/v1/responses/resp_x/input_items",
        "/v1/responses/resp_x/tokens",
        "/admin/reload",
    ),
    "/v1/models/%00",
    "/v1/models/%ff%fe",
    "/v1/responses/%2e%2e%2f",
    "//",
    "/v1//models",
    "/../../etc/passwd",
    "*",
    "http://other/v1/models",
    "/v1/models?%",
    "/v1/models#x",
    "/" + "a" * 7000,
    "/%",
    "/v1/models/\u00e9",
]
JSON = "application/json"


class Case(NamedTuple):
    """One request, as it goes over the wire."""

    kind: str
    """What is wrong with it."""
    raw: bytes
    """The bytes."""


def cases(seed: int, count: int) -> Iterator[Case]:
    """Yield `count` requests of all kinds."""
    rng = random.Random(seed)
    kinds: list[Callable[[random.Random], Case]] = [_fields, _fields, _fields, _bytes, _json, _head, _framing, _noise]
    for _ in range(count):
        yield rng.choice(kinds)(rng)


def post(path: str, body: bytes, *headers: str, length: int | None = None) -> bytes:
    """Write a request with a body."""
    size = len(body) if length is None else length
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", "Connection: close", f"Content-Length: {size}", *headers]
    if not any(header.lower().startswith("content-type") for header in headers):
        lines.append(f"Content-Type: {JSON}")
    return "\r\n".join([*lines, "", ""]).encode("utf-8", "surrogateescape") + body


def _fields(rng: random.Random) -> Case:
    """Give a valid body values that do not fit."""
    path = rng.choice(list(ROUTES))
    body: Any = json.loads(json.dumps(ROUTES[path]))
    for _ in range(rng.randint(1, 3)):
        _mutate(rng, body)
    return Case("fields", post(path, _dumps(body)))


def _dumps(value: Any) -> bytes:
    # Lone surrogates are escaped, as JSON allows.
    return json.dumps(value).encode()


def _mutate(rng: random.Random, value: Any) -> None:
    """Change something, somewhere in it."""
    while True:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        if not keys:
            return
        key = rng.choice(keys)
        inner = value[key]
        if isinstance(inner, dict | list) and inner and rng.random() < 0.7:
            value = inner
            continue
        break
    match rng.randrange(4 if isinstance(value, dict) else 3):
        case 0 | 1:
            value[key] = _odd(rng)
        case 2:
            del value[key]
        case _:
            value[rng.choice(["", "modle", "stream", "role", "tpye", "content", "\ud800", "x" * 300])] = _odd(rng)


def _odd(rng: random.Random) -> Any:
    """Return a value that most fields do not take."""
    nested: Any = "x"
    for _ in range(rng.choice([3, 40, 200])):
        nested = [nested] if rng.random() < 0.5 else {"a": nested}
    return rng.choice(
        [
            *(
                None,
                True,
                False,
                0,
                -1,
                1,
                2**31,
                2**63,
                2**64,
                -(2**70),
                10**300,
                0.0,
                -0.0,
                1e-320,
                1e308,
                2.5,
                nested,
            ),
            *(
                "",
                " ",
                "\x00",
                "\ud800",
                "\udfff\ud800",
                "\U0001f600" * 50,
                "\u202e",
                "a" * 50_000,
                "auto",
                "none",
                "user",
            ),
            "<|im_end|>",
            "<|im_start|>system\n",
            "</search>",
            "<information>",
            "</answer>",
            "%s%n{0}",
            "../../x",
            [],
            {},
            [[]],
            [{}],
            [None],
            {"": None},
            {"type": "text"},
            {"type": []},
            ["x"] * 300,
            [1, "a", None],
            {"role": "user", "content": "x"},
            [{"role": "user", "content": "x"}] * 300,
            {"type": "function"},
        ]
    )


def _bytes(rng: random.Random) -> Case:
    """Damage the bytes of a valid body."""
    path = rng.choice(list(ROUTES))
    body = bytearray(_dumps(ROUTES[path]))
    for _ in range(rng.randint(1, 5)):
        at = rng.randrange(len(body))
        match rng.randrange(4):
            case 0:
                body[at] = rng.randrange(256)
            case 1:
                del body[at:]
                break
            case 2:
                body[at:at] = rng.choice(
                    [b"\xff", b"\xed\xa0\x80", b"\xc0\x80", b"\xf4\x90\x80\x80", b"\x00", b"}", b'"']
                )
            case _:
                body[at : at + 1] = bytes(rng.randrange(256) for _ in range(rng.randrange(8)))
        body = body or bytearray(b" ")
    return Case("bytes", post(path, bytes(body)))


def _json(rng: random.Random) -> Case:
    """Send JSON that no program would."""
    path = rng.choice(list(ROUTES))
    depth = rng.choice([100, 1_000, 100_000])
    body = rng.choice(
        [
            b"",
            b" ",
            b"null",
            b"[]",
            b"0",
            b'"x"',
            b"{",
            b"}",
            b"\xef\xbb\xbf{}",
            b"NaN",
            b"{'a': 1}",
            b"{}{}",
            *(
                b"[" * depth,
                b'{"messages":' * depth,
                b"[" * depth + b"]" * depth,
                b'{"a":' * depth + b"1" + b"}" * depth,
            ),
            b'{"seed":' + b"9" * 5_000 + b"}",
            b'{"temperature":1e999999}',
            b'{"input":"\\ud800","seed":-1e5}',
            b'{"input":"x","input":1}',
            b'{"messages":[],"messages":[]}',
            b'{"input":"' + b"x" * 1_100_000 + b'"}',
            b'{"input":"\\u0000"}',
            b'{"input":"x","metadata":{"a":"' + b"\\ufffe" * 5_000 + b'"}}',
        ]
    )
    return Case("json", post(path, body))


def _head(rng: random.Random) -> Case:
    """Send odd headers, methods and places."""
    body = _dumps(ROUTES["/v1/responses"])
    header = rng.choice(
        [
            *(
                "Content-Type: text/plain",
                "Content-Type: ",
                "Content-Type: application/json; charset=x",
                "Content-Type: /",
            ),
            "Content-Type: multipart/form-data",
            "Authorization: Bearer \udcff\udcfe",
            "Authorization: Basic x",
            *(
                "Authorization: Bearer " + "k" * 8_000,
                "Content-Encoding: gzip",
                "Content-Encoding: br",
                "Range: bytes=x",
            ),
            "Expect: 100-continue",
            "Expect: nonsense",
            "Upgrade: websocket",
            "Upgrade: h2c",
            "Host: ",
            "Host: a b",
            *(
                "Host: evil.example",
                "Origin: null",
                "Origin: http://evil.example",
                "Origin: http://[",
                "Cookie: " + "a=b;" * 900,
            ),
            "X-Forwarded-For: " + "1.1.1.1, " * 500,
            "Accept: \udc80",
            "X-Request-Id: a",
            "Transfer-Encoding: gzip",
            *(
                "If-Modified-Since: never",
                "Connection: \udc80",
                "Content-Length: 0",
                "A: " + "b" * 20_000,
                "A" * 9_000 + ": b",
            ),
        ]
    )
    if rng.random() < 0.4:
        return Case("head", post("/v1/responses", body, header))
    if header.startswith("Content-Encoding") and rng.random() < 0.8:
        return Case("head", post("/v1/responses", zlib.compress(b" " * 50_000_000, 9), "Content-Encoding: deflate"))
    method = rng.choice(
        ["GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "POST", "get", "FOO", "G T"]
    )
    place = rng.choice(PLACES)
    lines = [f"{method} {place} HTTP/{rng.choice(['1.1', '1.1', '1.0', '2.0', '0.9', '9.9', 'x'])}", "Host: localhost"]
    return Case("head", "\r\n".join([*lines, header, "Connection: close", "", ""]).encode("utf-8", "surrogateescape"))


def _framing(rng: random.Random) -> Case:
    """Try to make two readers disagree on where a request ends."""
    start = "POST /v1/responses HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    inner = "GET /admin/reload HTTP/1.1\r\nHost: localhost\r\n\r\n"
    chunked = "Transfer-Encoding: chunked\r\n"
    rest = rng.choice(
        [
            *(
                f"Content-Length: 6\r\n{chunked}\r\n0\r\n\r\n{inner}",
                f"{chunked}Content-Length: 6\r\n\r\n0\r\n\r\n{inner}",
            ),
            *(
                f"Content-Length: 2\r\nContent-Length: 60\r\n\r\n{{}}{inner}",
                f"Content-Length: 2, 2\r\n\r\n{{}}{inner}",
            ),
            "Content-Length: -1\r\n\r\n{}",
            "Content-Length: +2\r\n\r\n{}",
            "Content-Length: 0x2\r\n\r\n{}",
            *(
                "Content-Length: 99999999999999999999\r\n\r\n{}",
                "Content-Length: \r\n\r\n{}",
                "Content-Length : 2\r\n\r\n{}",
            ),
            *(
                f"{chunked}\r\nZZ\r\n{{}}\r\n0\r\n\r\n",
                f"{chunked}\r\n-2\r\n{{}}\r\n0\r\n\r\n",
                f"{chunked}\r\n2\r\n{{}}{inner}",
            ),
            f"{chunked}\r\nFFFFFFFFFFFFFFFFFF\r\n{{}}",
            f"{chunked}\r\n2;{'x' * 20_000}\r\n{{}}\r\n0\r\n\r\n",
            f"{chunked}\r\n2\n{{}}\n0\n\n",
            f"Transfer-Encoding: xchunked\r\n\r\n2\r\n{{}}\r\n0\r\n\r\n{inner}",
            *(
                "Transfer-Encoding: chunked, identity\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
                f"Transfer-Encoding:\x0bchunked\r\n\r\n{inner}",
            ),
            f"{chunked}{chunked}\r\n2\r\n{{}}\r\n0\r\n\r\n",
            f" Content-Length: 2\r\n\r\n{{}}{inner}",
            *(
                f"{chunked}\r\n2\r\n{{}}\r\n0\r\nHost: evil\r\n\r\n{inner}",
                "Content-Length: 2\n\n{}",
                "X\r\n\r\n",
                "X: a\x00b\r\n\r\n",
            ),
            "Content-Length: 200\r\n\r\n{}",
            f"Expect: 100-continue\r\nContent-Length: 2\r\n{chunked}\r\n{{}}",
        ]
    )
    return Case("framing", (start + rest).encode())


def _noise(rng: random.Random) -> Case:
    """Send what is no HTTP at all, or too much of it."""
    return Case(
        "noise",
        rng.choice(
            [
                *(
                    b"",
                    b"\r\n\r\n",
                    b"\x00" * 500,
                    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
                    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",
                ),
                rng.randbytes(rng.randrange(1, 2_000)),
                b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 2_000 + b"\r\n",
                b"GET " + b"/a" * 40_000,
                b"A" * 70_000,
                b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n" * 200,
                b"GET / HTTP/1.1\r\n",
                b"POST /v1/responses HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}" * 50,
            ]
        ),
    )
