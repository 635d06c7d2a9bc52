"""`POST /admin/reload`: load the model anew without dropping a request."""

from __future__ import annotations

from aiohttp import web

from icrl.errors import IcrlError
from icrl.serve.keys import KEYS, SERVICE
from icrl.serve.problem import Problem

__all__ = ["add_routes"]


def add_routes(app: web.Application) -> None:
    """Serve the operator's commands."""
    app.router.add_post("/admin/reload", _reload)


async def _reload(request: web.Request) -> web.Response:
    """Reload; only with a key, or from the same machine where there are no keys.

    Raises:
        Problem: 403 from elsewhere, 409 where the new model cannot be opened and the old one stays.
    """
    if not request.app[KEYS].asked_for and request.remote not in ("127.0.0.1", "::1"):
        raise Problem(403, "reloading from another machine needs an API key", type="permission_error", code="forbidden")
    service = request.app[SERVICE]
    try:
        await service.reload()
    except IcrlError as error:
        raise Problem(409, f"the old model stays: {error}", type="server_error", code="reload_failed") from error
    return web.json_response({"status": service.state, "reloads": service.reloads})
