from __future__ import annotations

import asyncio

import pytest
from served import Brittle, ask, events_of
from watched import until

from icrl.errors import EngineError, MissingExtraError
from icrl.serve import telemetry as module
from icrl.serve.telemetry import Telemetry
from icrl.testing import EchoTool, FailingTool, HangingTool

pytest.importorskip("opentelemetry.sdk.trace", reason="install opentelemetry-sdk to test spans")
CALL, ANSWER = "<echo> <text>a secret</text> </echo>", "<answer> yes </answer>"


@pytest.fixture
def spans():
    """Keeps the spans that ended."""
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    exporter.provider = TracerProvider()
    exporter.provider.add_span_processor(SimpleSpanProcessor(exporter))
    return exporter


@pytest.fixture
def telemetry(spans):
    return Telemetry("scripted", spans.provider.get_tracer("icrl"))


def tree(spans):
    """Return the names of spans below each other's."""
    found = spans.get_finished_spans()
    names = {span.context.span_id: span.name for span in found}
    return sorted((names.get(span.parent.span_id if span.parent else None, ""), span.name) for span in found)


def one(spans, name):
    (span,) = [span for span in spans.get_finished_spans() if span.name == name]
    return span


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_is_a_tree_of_spans(serve, spans, telemetry, stream):
    client = await serve([CALL, ANSWER], telemetry=telemetry)
    async with client.post("/v1/chat/completions", json=ask("a secret", stream=stream)) as response:
        await (events_of(response) if stream else response.read())
    request, agent = "POST /v1/chat/completions", "invoke_agent icrl"
    await until(lambda: any(span.name == request for span in spans.get_finished_spans()))
    assert tree(spans) == sorted(
        [
            ("", request),
            (request, agent),
            (agent, "turn"),
            (agent, "turn"),
            ("turn", "chat scripted"),
            ("turn", "chat scripted"),
            ("turn", "execute_tool echo"),
        ]
    )
    everything = spans.get_finished_spans()
    assert len({span.context.trace_id for span in everything}) == 1
    by_id = {span.context.span_id: span for span in everything}
    for span in everything:
        parent = by_id.get(span.parent.span_id) if span.parent else None
        if parent is not None:
            assert parent.start_time <= span.end_time <= parent.end_time
    first = next(span for span in everything if span.name == "turn" and span.attributes["icrl.turn"] == 0)
    assert one(spans, "execute_tool echo").parent.span_id == first.context.span_id
    assert "secret" not in str([span.to_json() for span in everything])


async def test_spans_have_the_names_of_the_conventions(serve, spans, telemetry):
    client = await serve([CALL, ANSWER], telemetry=telemetry)
    async with client.post("/v1/responses", json={"input": "hi"}) as response:
        answer = await response.json()
    await until(lambda: any(span.name == "POST /v1/responses" for span in spans.get_finished_spans()))
    request = one(spans, "POST /v1/responses")
    assert request.kind.name == "SERVER"
    assert dict(request.attributes) == {
        "http.request.method": "POST",
        "http.route": "/v1/responses",
        "http.response.status_code": 200,
        "url.scheme": "http",
    }
    agent = dict(one(spans, "invoke_agent icrl").attributes)
    assert agent == {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.provider.name": "icrl",
        "gen_ai.agent.name": "icrl",
        "icrl.trajectory.id": answer["icrl"]["trajectory_id"],
        "icrl.stop_reason": "answer",
    }
    chats = [span.attributes for span in spans.get_finished_spans() if span.name == "chat scripted"]
    assert [chat["gen_ai.usage.output_tokens"] for chat in chats] == [len(CALL), len(ANSWER)]
    assert chats[0]["gen_ai.usage.input_tokens"] == answer["usage"]["input_tokens"]
    assert chats[0]["gen_ai.request.model"] == "scripted"
    assert chats[0]["gen_ai.response.finish_reasons"] == ("stop",)
    tool = dict(one(spans, "execute_tool echo").attributes)
    assert tool == {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.provider.name": "icrl",
        "gen_ai.tool.name": "echo",
        "gen_ai.tool.call.id": "0.0",
        "gen_ai.tool.type": "function",
    }


async def test_a_callers_trace_is_continued(serve, spans, telemetry):
    client = await serve([ANSWER], telemetry=telemetry)
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    async with client.get("/v1/models", headers={"traceparent": f"00-{trace}-{parent}-01"}) as response:
        await response.read()
    await until(spans.get_finished_spans)
    (span,) = spans.get_finished_spans()
    assert (f"{span.context.trace_id:032x}", f"{span.parent.span_id:016x}") == (trace, parent)


async def test_what_failed_is_marked(serve, spans, telemetry):
    failing = ["<fail> <text>x</text> </fail>", ANSWER]
    client = await serve(failing, agent={"tools": [FailingTool()]}, telemetry=telemetry)
    async with client.post("/v1/responses", json={"input": "hi"}) as response:
        assert response.status == 200
    tool = one(spans, "execute_tool fail")
    assert (tool.status.status_code.name, tool.attributes["error.type"]) == ("ERROR", "ToolError")
    spans.clear()
    engine = Brittle([ANSWER], EngineError("the machine is gone", engine="brittle"), after=3)
    client = await serve(engine, telemetry=telemetry)
    engine.broken = True
    async with client.post("/v1/responses", json={"input": "hi"}) as response:
        assert response.status == 502
    await until(lambda: len(spans.get_finished_spans()) == 2)
    assert tree(spans) == [("", "POST /v1/responses"), ("POST /v1/responses", "invoke_agent icrl")]
    assert one(spans, "invoke_agent icrl").attributes["error.type"] == "EngineError"
    assert one(spans, "POST /v1/responses").attributes["error.type"] == "502"
    assert "machine" not in str([span.to_json() for span in spans.get_finished_spans()])


async def test_a_client_that_vanishes_leaves_no_open_span(serve, spans, telemetry):
    tool = HangingTool()
    client = await serve(["<hang> <text>x</text> </hang>"], agent={"tools": [tool]}, telemetry=telemetry)
    asking = asyncio.create_task(client.post("/v1/responses", json={"input": "hi"}))
    await until(lambda: tool.calls)
    asking.cancel()
    await until(lambda: any(span.name == "POST /v1/responses" for span in spans.get_finished_spans()))
    assert tree(spans) == [
        ("", "POST /v1/responses"),
        ("POST /v1/responses", "invoke_agent icrl"),
        ("invoke_agent icrl", "turn"),
        ("turn", "chat scripted"),
        ("turn", "execute_tool hang"),
    ]
    assert one(spans, "execute_tool hang").attributes["error.type"] == "cancelled"


async def test_requests_side_by_side_are_traces_of_their_own(serve, spans, telemetry):
    client = await serve([CALL, ANSWER], agent={"tools": [EchoTool(latency_s=0.01)]}, telemetry=telemetry)

    async def one_request():
        async with client.post("/v1/responses", json={"input": "hi"}) as response:
            await response.read()

    await asyncio.gather(*(one_request() for _ in range(5)))
    await until(lambda: len(spans.get_finished_spans()) == 5 * 7)
    sizes = {}
    for span in spans.get_finished_spans():
        sizes[span.context.trace_id] = sizes.get(span.context.trace_id, 0) + 1
    assert list(sizes.values()) == [7] * 5


def test_without_the_extra_the_command_to_install_it_is_named(monkeypatch):
    def missing(*packages, extra):
        raise MissingExtraError(packages[0], extra=extra)

    monkeypatch.setattr(module, "require", missing)
    with pytest.raises(MissingExtraError, match=r"pip install 'icrl\[otel\]'"):
        Telemetry("m")
