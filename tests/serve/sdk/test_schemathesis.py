"""The running server against its own description, by schemathesis: no failure, no undocumented status or type."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager

import hypothesis
import pytest
from listening import listening

schemathesis = pytest.importorskip("schemathesis", reason="these tests need schemathesis")
pytestmark = [pytest.mark.sdk, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

CHECKS = [
    *("not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance"),
    *("unsupported_method", "negative_data_rejection", "response_headers_conformance"),
]
OPERATIONS = [
    *("POST /v1/chat/completions", "POST /v1/responses", "POST /v1/trajectories", "GET /v1/responses/{id}"),
    *("DELETE /v1/responses/{id}", "POST /v1/responses/{id}/cancel", "GET /v1/responses/{id}/input_items"),
    *("GET /v1/responses/{id}/tokens", "GET /v1/models", "GET /v1/models/{model}", "POST /admin/reload"),
    *("GET /health", "GET /ready", "GET /metrics", "GET /openapi.json", "GET /"),
]


@contextmanager
def in_a_thread() -> Iterator[str]:
    """Serve on a loop of its own, and yield the address."""
    started: Future[tuple[str, asyncio.AbstractEventLoop, asyncio.Event]] = Future()

    async def serve() -> None:
        ended = asyncio.Event()
        async with listening() as here:
            started.set_result((here.server.address, asyncio.get_running_loop(), ended))
            await ended.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    address, loop, ended = started.result(timeout=20)
    try:
        yield address
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join()


@pytest.fixture(scope="module")
def schema():
    with in_a_thread() as address:
        yield schemathesis.openapi.from_url(f"{address}/openapi.json")


def test_every_operation_is_named_here(schema):
    found = {f"{result.ok().method.upper()} {result.ok().path}" for result in schema.get_all_operations()}
    # It leaves out the place that the description itself comes from.
    assert found | {"GET /openapi.json"} == set(OPERATIONS)


def drive(operation, mode) -> list[int]:
    """Let schemathesis make requests, check the answers, and return their statuses."""
    checks = [schemathesis.checks.CHECKS.get_one(name) for name in CHECKS]
    seen = []

    @hypothesis.settings(max_examples=60, deadline=None, suppress_health_check=list(hypothesis.HealthCheck))
    @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
    def requests(case):
        seen.append(case.call_and_validate(checks=checks).status_code)

    requests()
    return seen


@pytest.mark.timeout(300)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_operation_does_what_its_description_says(schema, operation):
    method, path = operation.split()
    assert drive(schema[path][method], schemathesis.GenerationMode.POSITIVE)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/v1/trajectories"])
def test_what_the_description_forbids_is_refused(schema, path):
    statuses = drive(schema[path]["POST"], schemathesis.GenerationMode.NEGATIVE)
    assert 400 in statuses
    assert 200 not in statuses
