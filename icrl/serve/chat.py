"""`POST /v1/chat/completions`: OpenAI's chat protocol over the loop."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import msgspec
from aiohttp import web

from icrl.serve.body import read_body
from icrl.serve.chat_reply import ChatReply
from icrl.serve.chat_request import ChatRequest, read_ask
from icrl.serve.exchange import Exchange
from icrl.serve.keys import CALLER, CONFIG, MODEL_NAME, SERVICE, TRAJECTORIES
from icrl.serve.models import check_model
from icrl.serve.problem import engine_failed, invalid
from icrl.serve.stream import HEARTBEAT, send

__all__ = ["add_routes"]

_FOREVER_S = 86_400.0


def add_routes(app: web.Application) -> None:
    """Serve the chat protocol."""
    app.router.add_post("/v1/chat/completions", complete)


async def complete(request: web.Request) -> web.StreamResponse:
    """Answer one chat request, as a stream or in one piece."""
    body = await read_body(request, ChatRequest)
    check_model(request.app, body.model)
    ask, choices = read_ask(body, request.app[CONFIG].admission)
    async with (
        request.app[SERVICE].admitted(request[CALLER]) as lease,
        Exchange(lease, ask, choices=choices) as exchange,
    ):
        if body.logprobs and "logprobs" not in lease.agent.model.engine.info.capabilities:
            raise invalid("logprobs", "the model is asked for text only, and gives none; leave it out")
        request[TRAJECTORIES] = [run.id for run in exchange.runs]
        reply = ChatReply(request.app[MODEL_NAME], body, exchange, lease.agent.model.tokenizer)
        if body.stream:
            return await send(request, _chunks(reply, request.app[CONFIG].heartbeat_s), failed=reply.failed)
        return await _whole(reply)


async def _whole(reply: ChatReply) -> web.Response:
    async for batch in reply.exchange.told(heartbeat_s=_FOREVER_S):
        reply.hear(batch)
    trajectories = await reply.exchange.trajectories()
    if any(trajectory.error is not None for trajectory in trajectories):
        raise engine_failed()
    return web.Response(body=msgspec.json.encode(reply.whole(trajectories)), content_type="application/json")


async def _chunks(reply: ChatReply, heartbeat_s: float) -> AsyncGenerator[bytes, None]:
    yield reply.opening()
    async for batch in reply.exchange.told(heartbeat_s=heartbeat_s):
        if not batch:
            yield HEARTBEAT
        elif payload := reply.tell(batch):
            yield payload
    yield reply.ending(await reply.exchange.trajectories())
