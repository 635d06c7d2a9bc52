"""Keys: who is let in, and that no key is ever told."""

from __future__ import annotations

import asyncio
import hmac
import logging
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from listening import listening

from icrl.errors import ConfigError
from icrl.serve.access import OPEN_PATHS, Keys
from icrl.serve.backlog import LineWriter
from icrl.serve.config import ServeConfig

KEY = "sk-topsecret-123"


@given(keys=st.lists(st.text(min_size=1), max_size=4), guess=st.none() | st.text())
def test_exactly_the_keys_are_accepted(keys, guess):
    clean = [key for key in keys if key.isprintable()]
    assert Keys(clean).accepts(guess) == (not clean or (guess or "") in clean)


def test_every_key_is_compared_in_constant_time(monkeypatch):
    compared = []
    real = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: compared.append((len(a), len(b))) or real(a, b))
    keys = Keys(["a", "bb", "ccc"])
    for guess in ("a", "ccc", "no", None, "x" * 10_000):
        keys.accepts(guess)
    assert compared == [(32, 32)] * 15


@pytest.mark.parametrize(
    "header",
    [
        *(None, "", "Bearer", "Bearer ", "Bearer wrong", f"Basic {KEY}", KEY, f"Bearer {KEY}x", f"Bearer {KEY[:-1]}"),
        *("Bearer \udcff", f"Bearer {KEY.upper()}", "Bearer " + "k" * 7000),
    ],
)
async def test_wrong_keys_are_refused_everywhere_but_where_nothing_is_told(serve, monkeypatch, header):
    monkeypatch.setenv("ICRL_API_KEY", KEY)
    client = await serve(["<answer> ok </answer>"])
    headers = {} if header is None else {"Authorization": header}
    for path in (
        "/v1/models",
        "/metrics",
        "/openapi.json",
        "/v1/responses/resp_1",
        "/nowhere",
        "/v1/responses/x/tokens",
    ):
        answer = await client.get(path, headers=headers)
        assert answer.status == 401, path
        error = (await answer.json())["error"]
        assert error["code"] == "invalid_api_key"
        assert error["type"] == "authentication_error"
        assert "WWW-Authenticate" in answer.headers
    for path in ("/v1/responses", "/v1/chat/completions", "/v1/trajectories", "/admin/reload"):
        assert (await client.post(path, json={}, headers=headers)).status == 401
    for path in OPEN_PATHS:
        assert (await client.get(path, headers=headers)).status == 200


async def test_any_of_several_keys_opens(serve, monkeypatch, tmp_path):
    listed = tmp_path / "keys"
    listed.write_text(f"{KEY}\nother\n")
    monkeypatch.setenv("ICRL_API_KEY", "third")
    client = await serve(["<answer> ok </answer>"], api_key_file=listed)
    monkeypatch.setenv("ICRL_API_KEY", "third")
    for key in (KEY, "other"):
        for scheme in ("Bearer", "bearer", "BEARER"):
            answer = await client.get("/v1/models", headers={"Authorization": f"{scheme} {key}"})
            assert answer.status == 200


async def test_what_one_key_stored_another_does_not_see(serve, monkeypatch, tmp_path):
    listed = tmp_path / "keys"
    listed.write_text("one\ntwo\n")
    client = await serve(["<answer> ok </answer>"], api_key_file=listed)
    one, two = ({"Authorization": f"Bearer {key}"} for key in ("one", "two"))
    name = (await (await client.post("/v1/responses", json={"input": "x"}, headers=one)).json())["id"]
    for path in (f"/v1/responses/{name}", f"/v1/responses/{name}/tokens", f"/v1/responses/{name}/input_items"):
        assert (await client.get(path, headers=one)).status == 200
        assert (await client.get(path, headers=two)).status == 404
    body = {"input": "y", "previous_response_id": name}
    assert (await client.post("/v1/responses", json=body, headers=two)).status == 404
    assert (await client.delete(f"/v1/responses/{name}", headers=two)).status == 404
    assert (await client.post(f"/v1/responses/{name}/cancel", headers=two)).status == 404


async def test_no_answer_and_no_log_holds_a_key(monkeypatch, caplog, tmp_path):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("ICRL_API_KEY", KEY)
    log = tmp_path / "log"
    out = os.open(log, os.O_WRONLY | os.O_CREAT)
    lines = LineWriter(out)
    auth = f"Authorization: Bearer {KEY}\r\n"
    body = f'{{"input": "{KEY}", "modle": "{KEY}"}}'
    post = f"POST /v1/responses HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{auth}"
    requests = [
        f"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n{auth}Connection: close\r\n\r\n",
        f"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n{auth}Connection: close\r\n\r\n",
        f"GET /metrics HTTP/1.1\r\nHost: localhost\r\n{auth}Connection: close\r\n\r\n",
        f"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n{auth}X: \x00\r\n\r\n",
        f"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\x00\r\n\r\n",
        f"{post}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}",
        f"{post}Transfer-Encoding: chunked\r\nConnection: close\r\n\r\nZZ\r\n",
        f"GET /v1/models?key={KEY} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
    ]
    async with listening(lines=lines, access_log=True) as server:
        answers = [await server.exchange(raw.encode("latin-1")) for raw in requests]
    assert [answer.split(b" ", 2)[1] for answer in answers] == [
        *(b"200", b"200", b"200", b"400", b"400", b"400", b"400", b"401")
    ]
    assert await asyncio.to_thread(lines.close)
    os.close(out)
    written = log.read_text()
    assert written.count("\n") >= 5
    for text in (*map(bytes.decode, answers), written, caplog.text):
        assert KEY not in text


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "example.com"])
def test_other_machines_are_not_served_without_a_key(host, monkeypatch, tmp_path):
    monkeypatch.delenv("ICRL_API_KEY", raising=False)
    with pytest.raises(ConfigError, match="serves other machines, which needs a key"):
        ServeConfig(host=host)
    ServeConfig(host=host, insecure=True)
    keys = tmp_path / "keys"
    keys.write_text("\n \n")
    with pytest.raises(ConfigError, match="holds no key"):
        ServeConfig(host=host, api_key_file=keys)
    keys.write_text(KEY)
    ServeConfig(host=host, api_key_file=keys)
    monkeypatch.setenv("ICRL_API_KEY", KEY)
    ServeConfig(host=host)
