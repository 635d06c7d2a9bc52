"""A retriever as a server: the `/retrieve` protocol, for our own clients and for Search-R1's."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler

from icrl.errors import ToolUnavailable
from icrl.runtime.tools.corpus import Hit
from icrl.runtime.tools.retrievers.protocol import Retriever, fingerprint_of
from icrl.runtime.tools.retrievers.remote import as_document
from icrl.serve.access import Keys
from icrl.serve.problem import Problem

__all__ = ["MAX_BODY_BYTES", "MAX_QUERIES", "MAX_TOPK", "build_retriever_app"]

MAX_BODY_BYTES = 4 * 2**20
MAX_QUERIES = 1024
MAX_TOPK = 1000
MAX_QUERY_CHARS = 20_000
DEFAULT_TOPK = 3
BODY_TIMEOUT_S = 10.0
RETRY_AFTER_S = 1

_LOG = logging.getLogger("icrl.serve")


class _Body(msgspec.Struct):
    queries: list[str]
    topk: int | None = None
    return_scores: bool = False


_DECODER = msgspec.json.Decoder(_Body)


def build_retriever_app(
    retriever: Retriever, keys: Keys, *, timeout_s: float = 30.0, max_running: int = 64
) -> web.Application:
    """Make the application.

    Args:
        retriever: Answers; the application does not close it.
        keys: Who may ask.
        timeout_s: Seconds for one request.
        max_running: Requests that are answered at once; further ones are told to come back.
    """
    slots = _Slots(retriever, timeout_s, max_running)

    async def retrieve(request: web.Request) -> web.Response:
        keys.caller(request)
        async with asyncio.timeout(BODY_TIMEOUT_S):
            data = await request.read()
        return _json(await slots.answer(_read(data)))

    async def health(_: web.Request) -> web.Response:
        return _json({"status": "ok", "fingerprint": fingerprint_of(retriever)})

    app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[_explain])
    app.router.add_post("/retrieve", retrieve)
    app.router.add_get("/health", health)
    return app


def _json(value: Any) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), content_type="application/json")


class _Slots:
    """Answers so many requests at once."""

    def __init__(self, retriever: Retriever, timeout_s: float, free: int) -> None:
        self._retriever = retriever
        self._timeout_s = timeout_s
        self._free = free

    async def answer(self, body: _Body) -> dict[str, Any]:
        if not self._free:
            raise ToolUnavailable("the server is busy", retry_after_s=RETRY_AFTER_S)
        self._free -= 1
        try:
            async with asyncio.timeout(self._timeout_s):
                found = await self._retriever.search(body.queries, body.topk or DEFAULT_TOPK)
        finally:
            self._free += 1
        write = _with_score if body.return_scores else as_document
        return {"result": [[write(hit) for hit in hits] for hits in found]}


def _with_score(hit: Hit) -> dict[str, Any]:
    return {"document": as_document(hit), "score": hit.score}


def _read(data: bytes) -> _Body:
    try:
        body = _DECODER.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Problem(400, f"the body is not a request: {error}") from error
    if not 1 <= len(body.queries) <= MAX_QUERIES:
        raise Problem(400, f"`queries`: from 1 to {MAX_QUERIES}, not {len(body.queries)}")
    if max(map(len, body.queries)) > MAX_QUERY_CHARS:
        raise Problem(400, f"`queries`: {MAX_QUERY_CHARS} characters at most")
    if body.topk is not None and not 1 <= body.topk <= MAX_TOPK:
        raise Problem(400, f"`topk`: from 1 to {MAX_TOPK}, not {body.topk}")
    return body


@web.middleware
async def _explain(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn whatever goes wrong into JSON; how it went wrong inside stays here."""
    try:
        return await handler(request)
    except Problem as problem:
        return problem.response()
    except web.HTTPException as error:
        return Problem(error.status, error.reason.lower()).response()
    except (ToolUnavailable, TimeoutError) as error:
        after = getattr(error, "retry_after_s", None)
        message = "the index does not answer now; try again"
        return Problem(503, message, type="server_error", retry_after_s=after or RETRY_AFTER_S).response()
    except Exception:
        _LOG.exception("a request failed")
        return Problem(500, "the server failed; its log says how", type="server_error").response()
