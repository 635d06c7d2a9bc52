"""`GET /metrics`: what an operator watches, in Prometheus' text format.

Every label has a bounded set of values: routes, statuses, tools that are offered, stop reasons. Nothing that a client
or a model writes becomes one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from aiohttp import web
from aiohttp.typedefs import Handler
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from icrl.events import CallFinished, Event, RunStopped, TextDelta, ToolOutput, TurnFinished
from icrl.runtime.tools.accounts import ToolAccount
from icrl.serve.engines import EngineWatch, answers
from icrl.serve.keys import SERVICE
from icrl.serve.service import Service

__all__ = ["METRICS", "Metrics", "add_routes", "measured"]

_SHORT_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_TOKEN_S = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
UNKNOWN = "unknown"


class Metrics:
    """The server's counters; every server has a registry of its own.

    Tools are labelled by name only if the server offers them, so that a model cannot invent labels without end.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self.registry = CollectorRegistry()
        registry = self.registry
        self.requests = Counter(
            "icrl_requests", "Requests by route and status.", ["route", "status"], registry=registry
        )
        self.request_s = Histogram(
            "icrl_request_seconds", "From request to end of answer.", ["route"], buckets=_SHORT_S, registry=registry
        )
        self.first_token_s = Histogram(
            "icrl_first_token_seconds",
            "From the start of a run to its first token.",
            buckets=_SHORT_S,
            registry=registry,
        )
        self.token_s = Histogram(
            "icrl_token_seconds", "Seconds per sampled token, turn by turn.", buckets=_TOKEN_S, registry=registry
        )
        self.tool_s = Histogram(
            "icrl_tool_seconds",
            "Seconds per tool call, waiting included.",
            ["tool"],
            buckets=_SHORT_S,
            registry=registry,
        )
        self.tool_calls = Counter("icrl_tool_calls", "Tool calls by outcome.", ["tool", "outcome"], registry=registry)
        self.tokens = Counter("icrl_tokens", "Tokens: prompt, cached, sampled, observed.", ["kind"], registry=registry)
        self.stops = Counter("icrl_stops", "Runs by the reason of their end.", ["reason"], registry=registry)
        registry.register(_ToolAccounts(service))
        self.engines = EngineWatch(service)
        registry.register(self.engines)
        for name, what, value in (
            ("icrl_requests_in_flight", "Requests that hold a slot or wait for one.", lambda: service.running),
            ("icrl_requests_waiting", "Requests that wait for a slot.", lambda: service.waiting),
            ("icrl_runs_in_flight", "Runs that are being worked on.", lambda: len(service.live)),
            ("icrl_reloads", "How often the model was replaced.", lambda: service.reloads),
            ("icrl_ready", "Whether requests are answered.", lambda: answers(service)),
        ):
            self.show(name, what, value)

    def show(self, name: str, what: str, value: Callable[[], float]) -> None:
        """Show a number that is read whenever somebody asks."""
        Gauge(name, what, registry=self.registry).set_function(value)

    def watch(self, run_id: str) -> Callable[[Event], None]:
        """Return something that counts the events of one run."""
        started = time.monotonic()
        waiting = True

        def hear(event: Event) -> None:
            nonlocal waiting
            if isinstance(event, TextDelta):
                if waiting:
                    waiting = False
                    self.first_token_s.observe(time.monotonic() - started)
                return
            self._count(event)

        return hear

    def _count(self, event: Event) -> None:
        match event:
            case TurnFinished(turn=turn):
                self.tokens.labels("prompt").inc(turn.prompt_tokens)
                self.tokens.labels("cached").inc(turn.cached_tokens)
                self.tokens.labels("sampled").inc(turn.sampled_tokens)
                if turn.sampled_tokens:
                    self.token_s.observe(turn.generate_s / turn.sampled_tokens)
            case CallFinished(result=result):
                tool = result.name if result.name in _offered(self._service) else UNKNOWN
                self.tool_s.labels(tool).observe(result.wall_s)
                self.tool_calls.labels(tool, "ok" if result.error is None else "error").inc()
            case ToolOutput(segments=segments):
                self.tokens.labels("observed").inc(sum(len(segment.ids) for segment in segments))
            case RunStopped(stop_reason=reason):
                self.stops.labels(str(reason)).inc()


def _offered(service: Service) -> set[str]:
    return set() if service.agent is None else {spec.name for spec in service.agent.model.toolbox.specs}


_ACCOUNTS: tuple[tuple[str, str, Callable[[ToolAccount], float]], ...] = (
    ("icrl_tool_runs", "Runs of the tool itself.", lambda account: account.runs),
    ("icrl_tool_cache_hits", "Calls answered from the cache.", lambda account: account.cache_hits),
    ("icrl_tool_shared", "Calls that waited for an equal call's run.", lambda account: account.shared),
    ("icrl_tool_retries", "Runs that repeated one which failed.", lambda account: account.retries),
    ("icrl_tool_cancelled", "Calls whose caller stopped waiting.", lambda account: account.cancelled),
    ("icrl_tool_wait_seconds", "Seconds spent waiting for a slot or a rate.", lambda account: account.waited_s),
)


class _ToolAccounts(Collector):
    """What the tools did behind their calls; counts begin anew when the model is reloaded."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def collect(self) -> Iterator[Metric]:
        """Read the accounts."""
        agent = self._service.agent
        accounts = {} if agent is None else agent.model.toolbox.accounts
        for name, what, read in _ACCOUNTS:
            family = CounterMetricFamily(name, what, labels=["tool"])
            for tool, account in accounts.items():
                family.add_metric([tool], read(account))
            yield family


METRICS = web.AppKey("metrics", Metrics)
"""The application's metrics."""


def add_routes(app: web.Application) -> None:
    """Serve the metrics and listen to every run."""
    app[METRICS] = Metrics(app[SERVICE])
    app[SERVICE].watchers.append(app[METRICS].watch)
    app.on_cleanup.append(_close)
    app.router.add_get("/metrics", _expose)


async def _expose(request: web.Request) -> web.Response:
    metrics = request.app[METRICS]
    await metrics.engines.refresh()
    body = generate_latest(metrics.registry)
    return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})


async def _close(app: web.Application) -> None:
    await app[METRICS].engines.aclose()


@web.middleware
async def measured(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Count a request by its route (never by its path, which clients choose) and its status."""
    started = time.monotonic()
    resource = request.match_info.route.resource
    route = UNKNOWN if resource is None else resource.canonical
    status = "disconnected"
    try:
        response = await handler(request)
        status = str(response.status)
        return response
    finally:
        metrics = request.app[METRICS]
        metrics.requests.labels(route, status).inc()
        metrics.request_s.labels(route).observe(time.monotonic() - started)
