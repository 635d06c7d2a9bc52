"""OpenTelemetry spans of every run, under the GenAI semantic conventions: agent → generate, execute_tool.

Needs the `otel` extra and a tracer provider that the operator configures (`opentelemetry-instrument icrl serve`, or
the SDK's environment variables). Text and arguments are never put into spans.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from icrl.events import CallFinished, CallStarted, Event, RunStarted, RunStopped, TurnFinished
from icrl.imports import require

__all__ = ["Telemetry"]

_NS = 1_000_000_000


class Telemetry:
    """Turns the events of runs into spans.

    Args:
        model_name: What clients call the model.
        tracer: An OpenTelemetry tracer; the global provider's if not given.

    Raises:
        MissingExtraError: The otel extra is not installed.
    """

    def __init__(self, model_name: str, tracer: Any | None = None) -> None:
        require("opentelemetry", extra="otel")
        from opentelemetry import trace

        self._trace = trace
        self._tracer = tracer or trace.get_tracer("icrl")
        self._model = model_name

    def watch(self, run_id: str) -> Callable[[Event], None]:
        """Return something that makes the spans of one run."""
        agent: list[Any] = []
        tools: dict[str, Any] = {}

        def hear(event: Event) -> None:
            match event:
                case RunStarted():
                    agent.append(self._begin("invoke_agent icrl", "invoke_agent", None, {"icrl.trajectory.id": run_id}))
                case TurnFinished() if agent:
                    self._turn(event, agent[0])
                case CallStarted(call=call) if agent:
                    named = {"gen_ai.tool.name": call.name, "gen_ai.tool.call.id": call.id}
                    tools[call.id] = self._begin(f"execute_tool {call.name}", "execute_tool", agent[0], named)
                case CallFinished(call=call, result=result) if call.id in tools:
                    span = tools.pop(call.id)
                    if result.error is not None:
                        span.set_attribute("error.type", result.error)
                    span.end()
                case RunStopped() if agent:
                    for span in tools.values():
                        span.end()
                    agent[0].set_attribute("icrl.stop_reason", str(event.stop_reason))
                    if event.error is not None:
                        agent[0].set_attribute("error.type", event.error.kind)
                    agent[0].end()

        return hear

    def _begin(
        self, name: str, operation: str, parent: Any | None, attributes: dict[str, Any], *, start_ns: int | None = None
    ) -> Any:
        context = None if parent is None else self._trace.set_span_in_context(parent)
        own = {"gen_ai.operation.name": operation, "gen_ai.provider.name": "icrl", "gen_ai.request.model": self._model}
        return self._tracer.start_span(name, context=context, attributes=own | attributes, start_time=start_ns)

    def _turn(self, event: TurnFinished, parent: Any) -> None:
        turn = event.turn
        now = time.time_ns()
        span = self._begin(
            f"generate {self._model}",
            "generate_content",
            parent,
            {
                "gen_ai.usage.input_tokens": turn.prompt_tokens,
                "gen_ai.usage.output_tokens": turn.sampled_tokens,
                "gen_ai.response.finish_reasons": (turn.finish_reason,),
                "icrl.turn": turn.index,
            },
            start_ns=now - int(turn.generate_s * _NS),
        )
        span.end(now)
