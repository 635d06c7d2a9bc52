"""The routes of the server, and what every request passes on its way to one."""

from __future__ import annotations

import logging
import uuid

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from icrl.serve import admin, chat, metrics, models, openapi, origins, page, responses, trajectories
from icrl.serve.access import OPEN_PATHS, Keys
from icrl.serve.access_log import access_log
from icrl.serve.backlog import LineWriter
from icrl.serve.config import ServeConfig
from icrl.serve.connection import Connection
from icrl.serve.engines import answers, engines_of
from icrl.serve.keys import CALLER, CONFIG, KEYS, MODEL_NAME, REQUEST_ID, SERVICE
from icrl.serve.problem import Problem
from icrl.serve.service import Service
from icrl.serve.telemetry import Telemetry

__all__ = ["build_app"]

_LOG = logging.getLogger("icrl.serve")


def build_app(
    service: Service,
    config: ServeConfig,
    *,
    model_name: str,
    lines: LineWriter | None = None,
    telemetry: Telemetry | None = None,
) -> web.Application:
    """Put the server together.

    Args:
        service: The agent; started by whoever runs the app.
        config: What was set.
        model_name: What clients call the model.
        lines: Where to write the access log; without it there is none.
        telemetry: Makes a span of every request; without it there are none.
    """
    keys = Keys(config.api_keys())
    app = web.Application(
        client_max_size=config.admission.max_body_bytes,
        middlewares=[
            _identified,
            *([] if lines is None else [access_log(lines)]),
            *([] if telemetry is None else [telemetry.middleware()]),
            metrics.measured,
            _explained,
            origins.same_site(config, keyed=keys.asked_for),
            _authorised(keys),
        ],
    )
    app[SERVICE] = service
    app[CONFIG] = config
    app[KEYS] = keys
    app[MODEL_NAME] = model_name
    app.on_response_prepare.extend((_signed, origins.allow))
    app.router.add_get("/health", _health)
    app.router.add_get("/ready", _ready)
    for routes in (models, chat, responses, page, trajectories, metrics, admin, openapi):
        routes.add_routes(app)
    return app


@web.middleware
async def _identified(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Give every request a name."""
    if isinstance(request.protocol, Connection):
        request.protocol.begun()
    request[REQUEST_ID] = uuid.uuid4().hex
    return await handler(request)


async def _signed(request: web.Request, response: web.StreamResponse) -> None:
    """Give every answer the same headers; a signal, so that streams have them too."""
    response.headers["Server"] = "icrl"
    if REQUEST_ID in request:
        response.headers["X-Request-Id"] = request[REQUEST_ID]
    response.headers["X-Content-Type-Options"] = "nosniff"


@web.middleware
async def _explained(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn everything that goes wrong into an error of the protocol, without telling anything about the inside."""
    try:
        return await handler(request)
    except Problem as problem:
        return problem.response()
    except web.HTTPException as error:
        if error.status < 400:
            raise
        response = _of_http(error, request).response()
        if isinstance(error, web.HTTPMethodNotAllowed):
            response.headers["Allow"] = ", ".join(sorted(error.allowed_methods))
        return response
    except Exception:
        _LOG.exception("request %s failed", request[REQUEST_ID])
        if request.writer.output_size:  # an answer has begun, and there is no second one: the client sees it break off
            raise ConnectionError("an answer has begun already") from None
        message = f"the server failed; its log names request {request[REQUEST_ID]}"
        return Problem(500, message, type="server_error", code="internal_error").response()


def _of_http(error: web.HTTPException, request: web.Request) -> Problem:
    match error.status:
        case 404:
            return Problem(404, f"there is no {request.method} {request.path}", code="not_found")
        case 405:
            return Problem(405, f"{request.path} does not take {request.method}", code="method_not_allowed")
        case 413:
            limit = request.app[CONFIG].admission.max_body_bytes
            return Problem(413, f"the body is larger than {limit} bytes", code="body_too_large")
        case status:
            return Problem(status, error.reason or "the request cannot be served")


def _authorised(keys: Keys) -> Middleware:
    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        """Ask for the key everywhere but where nothing is told."""
        request[CALLER] = "" if request.path in OPEN_PATHS else keys.caller(request)
        return await handler(request)

    return check


async def _health(request: web.Request) -> web.Response:
    """Say that the process lives; 503 while it is going away. Engines that are away are told, and not its fault."""
    service = request.app[SERVICE]
    return _told(service, service.state, good=service.state in ("starting", "ready"))


async def _ready(request: web.Request) -> web.Response:
    """Say whether requests will be answered."""
    service = request.app[SERVICE]
    good = answers(service)
    return _told(service, "no_engine" if service.state == "ready" and not good else service.state, good=good)


def _told(service: Service, status: str, *, good: bool) -> web.Response:
    """Answer a probe, which needs no key: engines are counted, and not named."""
    engines = engines_of(service)
    counts = {} if engines is None else {"engines": {"used": engines.used, "all": engines.all}}
    return web.json_response({"status": status, **counts}, status=200 if good else 503)
