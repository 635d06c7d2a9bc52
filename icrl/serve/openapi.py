"""`GET /openapi.json`: the API's description, made from the very types that requests are decoded into."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import msgspec
from aiohttp import web

from icrl.serve.chat_request import ChatRequest
from icrl.serve.responses_request import ResponsesRequest
from icrl.serve.trajectories import TrajectoryRequest

__all__ = ["add_routes", "document"]

_BODIES = (ChatRequest, ResponsesRequest, TrajectoryRequest)
_PROBLEMS = {
    400: "A field is wrong; `param` names it.",
    401: "The API key is missing or wrong.",
    403: "Not from here: another page's request, or another name of this server.",
    404: "There is no such model or response.",
    408: "The body did not arrive in time.",
    409: "The new model cannot be opened; the old one stays.",
    413: "The body is too large.",
    415: "The body is not JSON.",
    429: "Too much at once; `Retry-After` says when to try again.",
    500: "A fault of the server's.",
    502: "The engine failed.",
    503: "The server is starting or going away.",
}
_ANYWHERE = (400, 401, 403, 500, 503)
_POSTED = (404, 408, 413, 415, 429, 502)
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}


def _object(name: str, **properties: Mapping[str, Any]) -> dict[str, Any]:
    """Describe an answer by the fields that it always has; `name` is the value of its field `object`."""
    fields = {"object": {"const": name}, **properties}
    return {"type": "object", "required": list(fields), "properties": fields}


_TEXT: dict[str, Any] = {"type": "string"}
_EVENT = {"type": "object", "required": ["data"], "properties": {"data": _TEXT, "event": _TEXT}}
_LIST: dict[str, Any] = {"type": "array", "items": {"type": "object"}}
_COMPLETION = _object(
    "chat.completion", id=_TEXT, created={"type": "integer"}, model=_TEXT, choices=_LIST, usage={"type": "object"}
)
_RESPONSE = _object(
    "response",
    id=_TEXT,
    created_at={"type": "integer"},
    model=_TEXT,
    status=_TEXT,
    output=_LIST,
    usage={"type": "object"},
)
_MODEL = _object("model", id=_TEXT, created={"type": "integer"}, owned_by=_TEXT)
_LISTED = _object("list", data=_LIST)
_COUNT = {"type": "integer"}
_ENGINES = {"type": "object", "required": ["used", "all"], "properties": {"used": _COUNT, "all": _COUNT}}
_STATUS = {"type": "object", "required": ["status"], "properties": {"status": _TEXT, "engines": _ENGINES}}
_TOKENS = {"type": "object", "required": ["trajectory_id", "segments"], "properties": {"segments": _LIST}}


def add_routes(app: web.Application) -> None:
    """Serve the description."""
    app.router.add_get("/openapi.json", _show)


async def _show(request: web.Request) -> web.Response:
    return web.Response(body=msgspec.json.encode(document()), content_type="application/json")


@lru_cache(maxsize=1)
def document() -> dict[str, Any]:
    """Return the OpenAPI 3.1 document.

    Example:
        >>> document()["paths"]["/v1/models"]["get"]["operationId"]
        'listModels'
    """
    from icrl import __version__

    _, schemas = msgspec.json.schema_components(_BODIES, ref_template="#/components/schemas/{name}")
    return {
        "openapi": "3.1.0",
        "info": {"title": "icrl", "version": __version__, "description": "A model with its tools, as a service."},
        "paths": _paths(),
        "components": {
            "schemas": {**schemas, "Error": _ERROR},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}, {}],
    }


def _paths() -> dict[str, Any]:
    named = [{"name": "id", "in": "path", "required": True, "schema": _TEXT}]
    response = "/v1/responses/{id}"
    return {
        "/v1/chat/completions": {"post": _operation("createChat", _COMPLETION, body="ChatRequest", streams=True)},
        "/v1/responses": {"post": _operation("createResponse", _RESPONSE, body="ResponsesRequest", streams=True)},
        response: {
            "get": _operation("getResponse", _RESPONSE, parameters=named),
            "delete": _operation("deleteResponse", _object("response", id=_TEXT), parameters=named),
        },
        f"{response}/cancel": {
            "post": _operation("cancelResponse", _object("response", id=_TEXT), parameters=named),
        },
        f"{response}/input_items": {"get": _operation("listInputItems", _LISTED, parameters=named)},
        f"{response}/tokens": {"get": _operation("getTokens", _TOKENS, parameters=named)},
        "/v1/trajectories": {"post": _operation("createTrajectories", _LISTED, body="TrajectoryRequest")},
        "/v1/models": {"get": _operation("listModels", _LISTED, problems=())},
        "/v1/models/{model}": {
            "get": _operation(
                "getModel", _MODEL, parameters=[{"name": "model", "in": "path", "required": True, "schema": _TEXT}]
            )
        },
        "/admin/reload": {"post": _operation("reload", _STATUS, problems=(409,))},
        "/health": {"get": _probe("health")},
        "/ready": {"get": _probe("ready")},
        "/metrics": {"get": _plain("metrics", "text/plain", "Metrics in Prometheus' format.")},
        "/openapi.json": {"get": _plain("openapi", "application/json", "This document.")},
        "/": {"get": _plain("page", "text/html", "The page for people.")},
    }


def _operation(
    name: str,
    answer: dict[str, Any],
    *,
    body: str | None = None,
    streams: bool = False,
    parameters: list[dict[str, Any]] | None = None,
    problems: tuple[int, ...] | None = None,
) -> dict[str, Any]:
    content: dict[str, Any] = {"application/json": {"schema": answer}}
    if streams:
        content["text/event-stream"] = {"schema": _EVENT}
    known = sorted({*_ANYWHERE, *(problems if problems is not None else _POSTED if body else (404,))})
    operation: dict[str, Any] = {
        "operationId": name,
        "responses": {"200": {"description": "Done.", "content": content}} | {str(n): _problem(n) for n in known},
    }
    if parameters:
        operation["parameters"] = parameters
    if body:
        schema = {"$ref": f"#/components/schemas/{body}"}
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    return operation


def _problem(status: int) -> dict[str, Any]:
    schema = {"$ref": "#/components/schemas/Error"}
    return {"description": _PROBLEMS[status], "content": {"application/json": {"schema": schema}}}


def _probe(name: str) -> dict[str, Any]:
    content = {"application/json": {"schema": _STATUS}}
    return {
        "operationId": name,
        "security": [],
        "responses": {
            "200": {"description": "Yes.", "content": content},
            "403": _problem(403),
            "503": {"description": "No.", "content": content},
        },
    }


def _plain(name: str, kind: str, what: str) -> dict[str, Any]:
    schema = {"type": "object"} if kind == "application/json" else _TEXT
    return {
        "operationId": name,
        "responses": {"200": {"description": what, "content": {kind: {"schema": schema}}}}
        | {str(n): _problem(n) for n in _ANYWHERE},
    }
