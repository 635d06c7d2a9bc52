"""`/v1/responses`: the Open Responses protocol over the loop, with semantic events and stored conversations."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from typing import Any

import msgspec
from aiohttp import web

from icrl.serve.ask import Ask
from icrl.serve.body import read_body
from icrl.serve.exchange import Exchange
from icrl.serve.history import answer_messages
from icrl.serve.keys import CALLER, CONFIG, MODEL_NAME, SERVICE, TRAJECTORIES
from icrl.serve.models import check_model
from icrl.serve.problem import engine_failed, invalid
from icrl.serve.responses_reply import ResponseReply
from icrl.serve.responses_request import ResponsesRequest, read_ask
from icrl.serve.store import ResponseStore, Stored
from icrl.serve.stream import HEARTBEAT, send
from icrl.tokenizer import Tokenizer
from icrl.trajectory import StopReason, Trajectory
from icrl.wire import encode

__all__ = ["STORE", "add_routes"]

STORE = web.AppKey("responses", ResponseStore)
"""Finished responses."""
LIVE = web.AppKey("live_responses", dict[str, tuple[str, ResponseReply]])
"""Responses in the making with their owners."""

_FOREVER_S = 86_400.0

Keep = Callable[[dict[str, Any], Trajectory], None]
"""Stores a finished response, before its last event can reach the client."""


def add_routes(app: web.Application) -> None:
    """Serve the Responses protocol."""
    config = app[CONFIG]
    app[STORE] = ResponseStore(max_entries=config.store_entries, max_bytes=config.store_bytes, ttl_s=config.store_ttl_s)
    app[LIVE] = {}
    app.router.add_post("/v1/responses", create)
    app.router.add_get("/v1/responses/{id}", _retrieve)
    app.router.add_delete("/v1/responses/{id}", _delete)
    app.router.add_post("/v1/responses/{id}/cancel", _cancel)
    app.router.add_get("/v1/responses/{id}/input_items", _input_items)


async def create(request: web.Request) -> web.StreamResponse:
    """Answer one request, as a stream of events or in one piece."""
    body = await read_body(request, ResponsesRequest)
    check_model(request.app, body.model)
    ask = _ask(request, body)
    async with request.app[SERVICE].admitted(request[CALLER]) as lease, Exchange(lease, ask) as exchange:
        reply = ResponseReply(request.app[MODEL_NAME], body, exchange)
        request[TRAJECTORIES] = [exchange.runs[0].id]
        keep = _keeper(request, body, ask, reply, lease.agent.model.tokenizer)
        request.app[LIVE][reply.name] = request[CALLER], reply
        try:
            if body.stream:
                events = _events(reply, keep, request.app[CONFIG].heartbeat_s)
                return await send(request, events, failed=reply.failed)
            return await _whole(reply, keep)
        finally:
            del request.app[LIVE][reply.name]


def _ask(request: web.Request, body: ResponsesRequest) -> Ask:
    name = body.previous_response_id
    if name is None:
        return read_ask(body, (), request.app[CONFIG].admission)
    stored = request.app[STORE].get(name, owner=request[CALLER], param="previous_response_id")
    return read_ask(body, stored.messages, request.app[CONFIG].admission)


async def _whole(reply: ResponseReply, keep: Keep) -> web.StreamResponse:
    async for batch in reply.exchange.told(heartbeat_s=_FOREVER_S):
        reply.tell(batch)
    (trajectory,) = await reply.exchange.trajectories()
    if trajectory.error is not None:
        raise engine_failed()
    response, _ = reply.ending(trajectory)
    keep(response, trajectory)
    return web.Response(body=msgspec.json.encode(response), content_type="application/json")


async def _events(reply: ResponseReply, keep: Keep, heartbeat_s: float) -> AsyncGenerator[bytes, None]:
    yield reply.opening()
    async for batch in reply.exchange.told(heartbeat_s=heartbeat_s):
        if not batch:
            yield HEARTBEAT
        elif payload := reply.tell(batch):
            yield payload
    (trajectory,) = await reply.exchange.trajectories()
    response, events = reply.ending(trajectory)
    keep(response, trajectory)
    yield events


def _keeper(request: web.Request, body: ResponsesRequest, ask: Ask, reply: ResponseReply, tokenizer: Tokenizer) -> Keep:
    def keep(response: dict[str, Any], trajectory: Trajectory) -> None:
        if body.store is False:
            return
        # Instructions hold for one request only, as the protocol has it.
        kept = ask.messages[body.instructions is not None :]
        entry = Stored(
            owner=request[CALLER],
            response=msgspec.json.encode(response),
            input_items=msgspec.json.encode(_listed(body, reply.name)),
            conversation=encode((*kept, *answer_messages(trajectory, reply.said))),
            trajectory=encode(trajectory),
            tokenizer=tokenizer,
        )
        request.app[STORE].put(reply.name, entry)

    return keep


def _listed(body: ResponsesRequest, name: str) -> dict[str, Any]:
    """Return the input as a list of items with ids."""
    given = body.input
    items = [{"role": "user", "content": given}] if isinstance(given, str) else given
    data = [{"id": f"in_{name}_{i}", "type": "message", **item} for i, item in enumerate(items)]
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"],
        "last_id": data[-1]["id"],
        "has_more": False,
    }


def _live(request: web.Request) -> ResponseReply | None:
    owner, reply = request.app[LIVE].get(request.match_info["id"], (None, None))
    return reply if owner == request[CALLER] else None


async def _retrieve(request: web.Request) -> web.Response:
    reply = _live(request)
    if reply is not None:
        return web.Response(body=msgspec.json.encode(reply.so_far()), content_type="application/json")
    stored = request.app[STORE].get(request.match_info["id"], owner=request[CALLER])
    return web.Response(body=stored.response, content_type="application/json")


async def _delete(request: web.Request) -> web.Response:
    name = request.match_info["id"]
    request.app[STORE].delete(name, owner=request[CALLER])
    return web.json_response({"id": name, "object": "response", "deleted": True})


async def _input_items(request: web.Request) -> web.Response:
    stored = request.app[STORE].get(request.match_info["id"], owner=request[CALLER])
    return web.Response(body=stored.input_items, content_type="application/json")


async def _cancel(request: web.Request) -> web.Response:
    """End a response that is being made, and return it as it is; its stream ends with what there is."""
    reply, name = _live(request), request.match_info["id"]
    if reply is None:
        request.app[STORE].get(name, owner=request[CALLER])
        raise invalid("id", f"{name} is finished already", code="response_finished")
    reply.cancelled = True
    for run in reply.exchange.runs:
        run.stop(StopReason.ABORTED)
    return web.Response(body=msgspec.json.encode(reply.so_far()), content_type="application/json")
