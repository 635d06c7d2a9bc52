"""OpenTelemetry spans of every request, under the HTTP and GenAI semantic conventions.

    POST /v1/responses → invoke_agent icrl → turn → chat MODEL
                                                  → execute_tool NAME

Needs the `otel` extra and a tracer provider that the operator configures (`opentelemetry-instrument icrl serve`, or
the SDK's environment variables). A caller's `traceparent` is continued. Text and arguments are never put into spans.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from icrl.events import CallFinished, CallStarted, Event, RunStarted, RunStopped, ToolOutput, TurnFinished
from icrl.imports import require
from icrl.types import ToolCall, ToolResult

__all__ = ["Telemetry"]

AGENT = "icrl"
MAX_NAME_CHARS = 64
_NS = 1_000_000_000


class Telemetry:
    """Makes the spans.

    Args:
        model_name: What clients call the model.
        tracer: An OpenTelemetry tracer; the global provider's if not given.

    Raises:
        MissingExtraError: The otel extra is not installed.
    """

    def __init__(self, model_name: str, tracer: Any | None = None) -> None:
        require("opentelemetry", extra="otel")
        from opentelemetry import propagate, trace

        self._extract = propagate.extract
        self._trace = trace
        self._tracer = tracer or trace.get_tracer("icrl")
        self._model = model_name

    def middleware(self) -> Middleware:
        """Return a middleware that makes the span of a request; those of its runs become its children."""

        @web.middleware
        async def traced(request: web.Request, handler: Handler) -> web.StreamResponse:
            return await self._trace_request(request, handler)

        return traced

    async def _trace_request(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        resource = request.match_info.route.resource
        route = {} if resource is None else {"http.route": resource.canonical}
        attributes = {"http.request.method": request.method, "url.scheme": request.scheme, **route}
        name = " ".join([request.method, *route.values()])
        context, kind = self._extract(request.headers), self._trace.SpanKind.SERVER
        with self._tracer.start_as_current_span(name, context=context, kind=kind, attributes=attributes) as span:
            response = await handler(request)
            span.set_attribute("http.response.status_code", response.status)
            if response.status >= 500:
                self._fail(span, str(response.status))
            return response

    def watch(self, run_id: str) -> Callable[[Event], None]:
        """Return something that makes the spans of one run."""
        return _RunSpans(self, run_id).hear

    def begin(
        self, name: str, operation: str, parent: Any | None, attributes: dict[str, Any], *, start_ns: int | None = None
    ) -> Any:
        """Begin a span; without a parent it belongs to the request that is being answered."""
        context = None if parent is None else self._trace.set_span_in_context(parent)
        own = {"gen_ai.operation.name": operation, "gen_ai.provider.name": AGENT} if operation else {}
        return self._tracer.start_span(name, context=context, attributes=own | attributes, start_time=start_ns)

    def turn(self, event: TurnFinished, parent: Any) -> Any:
        """Make the span of an engine call, within that of its turn, which is returned and goes on."""
        turn, now = event.turn, time.time_ns()
        start_ns = now - int(turn.generate_s * _NS)
        whole = self.begin("turn", "", parent, {"icrl.turn": turn.index}, start_ns=start_ns)
        usage = {
            "gen_ai.request.model": self._model,
            "gen_ai.usage.input_tokens": turn.prompt_tokens,
            "gen_ai.usage.cache_read.input_tokens": turn.cached_tokens,
            "gen_ai.usage.output_tokens": turn.sampled_tokens,
            "gen_ai.response.finish_reasons": (turn.finish_reason,),
        }
        self.begin(f"chat {self._model}", "chat", whole, usage, start_ns=start_ns).end(now)
        return whole

    def end(self, span: Any, error: str | None = None) -> None:
        """End a span; with the class name of what went wrong."""
        if error is not None:
            self._fail(span, error)
        span.end()

    def _fail(self, span: Any, error: str) -> None:
        span.set_attribute("error.type", error)
        span.set_status(self._trace.StatusCode.ERROR)


class _RunSpans:
    """The spans of one run: the agent's, the turn that goes on, and the tools that are at work."""

    def __init__(self, telemetry: Telemetry, run_id: str) -> None:
        self._telemetry = telemetry
        self._run_id = run_id
        self._agent: Any = None
        self._turn: Any = None
        self._tools: dict[str, Any] = {}

    def hear(self, event: Event) -> None:
        match event:
            case RunStarted():
                attributes = {"gen_ai.agent.name": AGENT, "icrl.trajectory.id": self._run_id}
                self._agent = self._telemetry.begin(f"invoke_agent {AGENT}", "invoke_agent", None, attributes)
            case TurnFinished():
                self._turn = self._telemetry.turn(event, self._agent)
            case CallStarted(call=call):
                self._call(call)
            case CallFinished(result=result):
                self._answered(result)
            case ToolOutput():
                self._turn_over()
            case RunStopped():
                self._stopped(event)

    def _call(self, call: ToolCall) -> None:
        name = call.name[:MAX_NAME_CHARS]  # as the model wrote it
        attributes = {"gen_ai.tool.name": name, "gen_ai.tool.call.id": call.id, "gen_ai.tool.type": "function"}
        self._tools[call.id] = self._telemetry.begin(f"execute_tool {name}", "execute_tool", self._turn, attributes)

    def _answered(self, result: ToolResult) -> None:
        self._telemetry.end(self._tools.pop(result.call_id), result.error)

    def _turn_over(self) -> None:
        if self._turn is not None:
            self._telemetry.end(self._turn)
            self._turn = None

    def _stopped(self, event: RunStopped) -> None:
        for span in self._tools.values():
            self._telemetry.end(span, "cancelled")
        self._turn_over()
        self._agent.set_attribute("icrl.stop_reason", str(event.stop_reason))
        self._telemetry.end(self._agent, None if event.error is None else event.error.kind)
