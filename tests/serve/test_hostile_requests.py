"""Malformed requests over a real socket: no failure of the server, and nothing of them is left."""

from __future__ import annotations

import hypothesis
import msgspec
import pytest
from attacking import attack, residue
from hostile import ROUTES, cases
from hypothesis import given
from hypothesis import strategies as st
from listening import listening

from icrl.serve.body import decode_body
from icrl.serve.chat_request import ChatRequest
from icrl.serve.chat_request import read_ask as read_chat
from icrl.serve.config import AdmissionConfig
from icrl.serve.problem import Problem
from icrl.serve.responses_request import ResponsesRequest
from icrl.serve.responses_request import read_ask as read_response
from icrl.serve.trajectories import TrajectoryRequest

MANY = 1500
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.timeout(300)
async def test_hostile_requests_are_refused_and_leave_nothing_behind():
    async with listening(store_entries=20) as server:
        await attack(server.port, 0, 300)
        before = await residue()
        seen = await attack(server.port, 1, MANY)
        after = await residue()
        assert (after.tasks, after.files) == (before.tasks, before.files)
        assert after.resident_bytes - before.resident_bytes < 64_000_000
        assert seen[400] > MANY // 2
        assert seen[200] > MANY // 50
        assert {403, 404, 405, 413, 415} <= set(seen)
        assert not server.server.service.running
        assert server.server.service.state == "ready"


def test_the_attack_can_be_repeated_and_is_of_all_kinds():
    first = list(cases(3, 200))
    assert first == list(cases(3, 200))
    assert {case.kind for case in first} == {"fields", "bytes", "json", "head", "framing", "noise"}


def understood(path: str, raw: bytes) -> bool:
    """Whether a body is taken; anything but a refusal with 400 is a failure."""
    admission = AdmissionConfig()
    try:
        if path == "/v1/responses":
            read_response(decode_body(raw, ResponsesRequest), (), admission)
        elif path == "/v1/chat/completions":
            read_chat(decode_body(raw, ChatRequest), admission)
        else:
            decode_body(raw, TrajectoryRequest)
    except Problem as problem:
        refusal = problem
    else:
        return True
    assert refusal.status == 400
    assert msgspec.json.decode(refusal.body())["error"]["message"]
    return False


@pytest.mark.parametrize("path", ROUTES)
@given(data=st.data())
def test_any_json_in_any_field_is_taken_or_refused(path, data):
    body = dict(ROUTES[path])
    name = data.draw(st.sampled_from(sorted(body)) | st.text(max_size=8), label="field")
    body[name] = data.draw(JSON, label="value")
    understood(path, msgspec.json.encode(body))


@pytest.mark.parametrize("path", ROUTES)
@given(raw=st.binary(max_size=60))
def test_any_bytes_are_refused(path, raw):
    hypothesis.assume(not raw.strip().startswith(b"{"))
    assert not understood(path, raw)


@pytest.mark.parametrize("path", ROUTES)
@given(at=st.integers(0, 2_000), raw=st.binary(max_size=3), removed=st.integers(0, 3))
def test_damaged_bodies_are_taken_or_refused(path, at, raw, removed):
    body = msgspec.json.encode(ROUTES[path])
    at %= len(body)
    understood(path, body[:at] + raw + body[at + removed :])


@pytest.mark.parametrize("path", ROUTES)
def test_the_bodies_that_are_damaged_are_valid(path):
    assert understood(path, msgspec.json.encode(ROUTES[path]))
