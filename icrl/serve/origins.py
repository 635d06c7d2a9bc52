"""Which web pages may call: the server's own, and those that were named.

A browser lets any page send requests to a server on the user's own machine, and lets pages whose name was made to
point there (DNS rebinding) read the answers too. Pages give themselves away by the headers `Origin` and `Host`.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware

from icrl.serve.config import ServeConfig, is_loopback
from icrl.serve.keys import CONFIG
from icrl.serve.problem import Problem

__all__ = ["allow", "same_site"]

_ANY = "*"
_METHODS = "GET, POST, DELETE, OPTIONS"
_HEADERS = "Authorization, Content-Type"
_SHOWN = "X-Request-Id, Retry-After"
_SAFE = frozenset({hdrs.METH_GET, hdrs.METH_HEAD, hdrs.METH_OPTIONS})
_MAX_AGE_S = 600


def same_site(config: ServeConfig, *, keyed: bool) -> Middleware:
    """Return a middleware that answers pages that are allowed to ask, and refuses what other pages send.

    Args:
        config: Names the origins; whether the server is for its own machine only.
        keyed: Whether callers need a key.
    """
    named = frozenset(config.cors_origin)
    local_only = is_loopback(config.host) and not config.insecure and not keyed

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        host = request.headers.get(hdrs.HOST, "").lower()
        if local_only and host and not _names_loopback(host):
            raise Problem(403, "Host: this server is for its own machine only, and has no other name", code="host")
        origin = request.headers.get(hdrs.ORIGIN)
        allowed = origin is None or origin in named or _ANY in named or _netloc(origin) == host
        preflight = request.method == hdrs.METH_OPTIONS and hdrs.ACCESS_CONTROL_REQUEST_METHOD in request.headers
        if not allowed and (preflight or request.method not in _SAFE):
            raise Problem(403, f"Origin: pages of {origin} may not call; allow them by --cors-origin", code="origin")
        if preflight:
            return web.Response(status=204)
        return await handler(request)

    return check


async def allow(request: web.Request, response: web.StreamResponse) -> None:
    """Tell a browser that the page which asked may read the answer; a signal, so that streams have it too."""
    named = request.app[CONFIG].cors_origin
    if not named:
        return
    response.headers.add(hdrs.VARY, hdrs.ORIGIN)
    origin = request.headers.get(hdrs.ORIGIN)
    if origin is None or not (origin in named or _ANY in named):
        return
    response.headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = origin
    response.headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = _SHOWN
    if request.method == hdrs.METH_OPTIONS:
        response.headers[hdrs.ACCESS_CONTROL_ALLOW_METHODS] = _METHODS
        response.headers[hdrs.ACCESS_CONTROL_ALLOW_HEADERS] = _HEADERS
        response.headers[hdrs.ACCESS_CONTROL_MAX_AGE] = str(_MAX_AGE_S)


def _netloc(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def _names_loopback(host: str) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname
    except ValueError:
        return False
    return name is not None and (is_loopback(name) or name.endswith(".localhost"))
