"""What every request passes: names, errors in the protocol's shape, and a stream that breaks off rather than lies."""

from __future__ import annotations

import logging

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from listening import agreeable

from icrl.runtime.agent import Agent
from icrl.serve.app import build_app
from icrl.serve.config import AdmissionConfig, ServeConfig
from icrl.serve.openapi import document
from icrl.serve.service import Service


@pytest.fixture
async def broken(monkeypatch):
    """A client of a server with routes that fail in every way."""
    monkeypatch.delenv("ICRL_API_KEY", raising=False)
    config = ServeConfig()
    service = Service(lambda: Agent(agreeable()), config.admission)
    app = build_app(service, config, model_name="m")

    async def at_once(request: web.Request) -> web.StreamResponse:
        raise RuntimeError("password=hunter2")

    async def midway(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"data: 1\n\n")
        raise RuntimeError("password=hunter2")

    async def late(request: web.Request) -> web.StreamResponse:
        raise TimeoutError

    for name, handler in (("at_once", at_once), ("midway", midway), ("late", late)):
        app.router.add_get(f"/{name}", handler)
    async with TestClient(TestServer(app)) as client:
        yield client
    await service.aclose()


@pytest.mark.parametrize("path", ["/at_once", "/late"])
async def test_a_fault_is_told_by_its_request_and_not_by_its_inside(broken, path, caplog):
    answer = await broken.get(path)
    assert answer.status == 500
    error = (await answer.json())["error"]
    assert error["type"] == "server_error"
    assert error["code"] == "internal_error"
    assert answer.headers["X-Request-Id"] in error["message"]
    assert answer.headers["X-Request-Id"] in caplog.text
    assert "hunter2" not in await answer.text()


async def test_a_fault_after_the_status_line_breaks_the_answer_off(broken, caplog):
    async with broken.get("/midway") as answer:
        assert answer.status == 200
        with pytest.raises(Exception, match="payload"):
            await answer.read()
    assert "hunter2" in caplog.text
    assert [record.levelno for record in caplog.records if record.name == "icrl.serve"] == [logging.ERROR]
    assert (await broken.get("/at_once")).status == 500


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("POST", "/v1/nowhere", 404, "not_found"),
        ("GET", "/v1/responses/a/b", 404, "not_found"),
        ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
        ("PATCH", "/v1/responses/x", 405, "method_not_allowed"),
    ],
)
async def test_what_is_not_there_is_said_in_the_protocols_shape(serve, method, path, status, code):
    client = await serve(["<answer> ok </answer>"])
    answer = await client.request(method, path)
    assert answer.status == status
    assert answer.content_type == "application/json"
    error = (await answer.json())["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == code
    assert path in error["message"]
    assert ("Allow" in answer.headers) == (status == 405)


async def test_a_body_of_the_wrong_kind_is_refused(serve):
    client = await serve(["<answer> ok </answer>"], admission=AdmissionConfig(max_body_bytes=200))
    answer = await client.post("/v1/responses", data="x", headers={"Content-Type": "text/plain"})
    assert answer.status == 415
    assert "must be application/json, not text/plain" in (await answer.json())["error"]["message"]
    answer = await client.post("/v1/responses", json={"input": "x" * 200})
    assert answer.status == 413
    assert (await answer.json())["error"]["message"] == "the body is larger than 200 bytes"


async def test_every_answer_has_a_name_and_says_little_of_the_server(serve):
    client = await serve(["<answer> ok </answer>"])
    names = set()
    for path in ("/", "/health", "/nowhere", "/v1/models"):
        headers = (await client.get(path)).headers
        names.add(headers["X-Request-Id"])
        assert headers["Server"] == "icrl"
        assert headers["X-Content-Type-Options"] == "nosniff"
    streamed = await client.post("/v1/responses", json={"input": "x", "stream": True})
    assert streamed.headers["Server"] == "icrl"
    names.add(streamed.headers["X-Request-Id"])
    assert len(names) == 5


async def test_the_description_has_every_route(serve):
    client = await serve(["<answer> ok </answer>"])
    resources = client.server.app.router.resources()
    routes = {
        (resource.canonical, route.method.lower())
        for resource in resources
        for route in resource
        if route.method != "HEAD"
    }
    described = {(path, method) for path, item in document()["paths"].items() for method in item}
    assert {(path.replace(":.+", ""), method) for path, method in routes} == described
    assert await (await client.get("/openapi.json")).json() == document()
