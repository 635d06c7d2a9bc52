"""`GET /v1/models`: the one model that is served."""

from __future__ import annotations

import time

from aiohttp import web

from icrl.errors import nearest
from icrl.serve.keys import MODEL_NAME, SERVICE
from icrl.serve.problem import Problem

__all__ = ["ALIAS", "add_routes", "check_model"]

ALIAS = "icrl"
"""A name that always works, whatever is served."""

_STARTED = int(time.time())


def add_routes(app: web.Application) -> None:
    """Serve the list of models."""
    app.router.add_get("/v1/models", _list)
    app.router.add_get("/v1/models/{model:.+}", _one)


def check_model(app: web.Application, name: str | None) -> None:
    """Accept the served model's name, the alias, or none.

    Raises:
        Problem: 404 for another name.
    """
    known = (app[MODEL_NAME], ALIAS)
    if name is not None and name not in known:
        message = f"model: {name!r} is not served here; this server has {app[MODEL_NAME]!r}.{nearest(name, known)}"
        raise Problem(404, message, param="model", code="model_not_found")


def _card(app: web.Application, name: str) -> dict[str, object]:
    """Describe the model; what the protocol has no field for stands under `icrl`."""
    agent = app[SERVICE].agent
    specs = () if agent is None else agent.model.toolbox.specs
    own = {"tools": [{"name": spec.name, "description": spec.description} for spec in specs]}
    return {"id": name, "object": "model", "created": _STARTED, "owned_by": "icrl", "icrl": own}


async def _list(request: web.Request) -> web.Response:
    return web.json_response({"object": "list", "data": [_card(request.app, request.app[MODEL_NAME])]})


async def _one(request: web.Request) -> web.Response:
    name = request.match_info["model"]
    check_model(request.app, name)
    return web.json_response(_card(request.app, name))
