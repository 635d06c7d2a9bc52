"""Which web pages may call."""

from __future__ import annotations

import pytest

from icrl.errors import ConfigError
from icrl.serve.config import ServeConfig

ASK = {"input": "x"}
OTHER = "https://app.example"
PREFLIGHT = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}


@pytest.fixture
def ask(serve):
    async def start(**config):
        return await serve(["<answer> ok </answer>"], **config)

    return start


async def test_without_an_origin_nothing_is_added(ask):
    client = await ask()
    answer = await client.post("/v1/responses", json=ASK)
    assert answer.status == 200
    assert not [name for name in answer.headers if name.startswith("Access-Control") or name == "Vary"]


@pytest.mark.parametrize("origin", [OTHER, "null", "http://[", "http://127.0.0.1:1"])
async def test_other_pages_may_not_call(ask, origin):
    client = await ask()
    answer = await client.post("/v1/responses", json=ASK, headers={"Origin": origin})
    assert answer.status == 403
    assert (await answer.json())["error"]["code"] == "origin"
    assert "Access-Control-Allow-Origin" not in answer.headers
    preflight = await client.options("/v1/responses", headers={"Origin": origin, **PREFLIGHT})
    assert preflight.status == 403


async def test_the_servers_own_page_may_call(ask):
    client = await ask()
    origin = f"http://{client.host}:{client.port}"
    assert (await client.post("/v1/responses", json=ASK, headers={"Origin": origin})).status == 200


async def test_a_page_that_is_named_may_call_and_read_also_streams(ask, monkeypatch):
    monkeypatch.setenv("ICRL_API_KEY", "secret")
    client = await ask(cors_origin=(OTHER,))
    preflight = await client.options("/v1/responses", headers={"Origin": OTHER, **PREFLIGHT})
    assert preflight.status == 204
    assert preflight.headers["Access-Control-Allow-Origin"] == OTHER
    assert "Authorization" in preflight.headers["Access-Control-Allow-Headers"]
    assert "POST" in preflight.headers["Access-Control-Allow-Methods"]
    assert preflight.headers["Vary"] == "Origin"
    headers = {"Origin": OTHER, "Authorization": "Bearer secret"}
    for body in (ASK, {**ASK, "stream": True}):
        answer = await client.post("/v1/responses", json=body, headers=headers)
        assert answer.status == 200
        assert answer.headers["Access-Control-Allow-Origin"] == OTHER
        assert "Retry-After" in answer.headers["Access-Control-Expose-Headers"]
        assert "Access-Control-Allow-Credentials" not in answer.headers
    refused = await client.post("/v1/responses", json=ASK, headers={"Origin": OTHER})
    assert refused.status == 401
    assert refused.headers["Access-Control-Allow-Origin"] == OTHER
    third = await client.get(
        "/v1/models", headers={"Origin": "https://third.example", "Authorization": "Bearer secret"}
    )
    assert "Access-Control-Allow-Origin" not in third.headers
    assert third.headers["Vary"] == "Origin"


async def test_every_page_may_call_where_that_was_said(ask):
    client = await ask(cors_origin=("*",))
    answer = await client.post("/v1/responses", json=ASK, headers={"Origin": OTHER})
    assert answer.headers["Access-Control-Allow-Origin"] == OTHER


@pytest.mark.parametrize(
    ("host", "status"),
    [
        *(("localhost", 200), ("localhost:8000", 200), ("127.0.0.1:1", 200), ("[::1]:80", 200), ("x.localhost", 200)),
        *(("evil.example", 403), ("127.0.0.1.evil.example", 403), ("[", 403), ("10.0.0.1", 403)),
    ],
)
async def test_a_name_that_was_made_to_point_here_is_refused(ask, host, status):
    client = await ask()
    assert (await client.get("/v1/models", headers={"Host": host})).status == status


async def test_other_names_are_fine_where_there_is_a_key_or_none_is_wanted(ask, monkeypatch):
    client = await ask(insecure=True)
    assert (await client.get("/v1/models", headers={"Host": "proxy.example"})).status == 200
    monkeypatch.setenv("ICRL_API_KEY", "secret")
    client = await ask()
    headers = {"Host": "proxy.example", "Authorization": "Bearer secret"}
    assert (await client.get("/v1/models", headers=headers)).status == 200


@pytest.mark.parametrize("origin", ["example.com", "https://example.com/", "https://a b", "", "https://u@x"])
def test_what_is_no_origin_is_refused_at_the_start(origin):
    with pytest.raises(ConfigError, match="cors_origin: must be"):
        ServeConfig(cors_origin=(origin,))
