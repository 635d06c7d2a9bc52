"""`/v1/responses`: the Open Responses protocol over the loop, with semantic events and stored conversations."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec
from aiohttp import web

from icrl.serve.body import read_body
from icrl.serve.exchange import Exchange, Told
from icrl.serve.history import answer_messages
from icrl.serve.keys import CALLER, CONFIG, MODEL_NAME, REQUEST_ID, SERVICE, TRAJECTORIES
from icrl.serve.models import check_model
from icrl.serve.problem import Problem, invalid
from icrl.serve.responses_items import ItemWriter
from icrl.serve.responses_request import ResponsesRequest, read_ask
from icrl.serve.store import ResponseStore, Stored
from icrl.serve.stream import EventStream, encode_event
from icrl.serve.usage import count
from icrl.trajectory import StopReason, Trajectory
from icrl.types import Message
from icrl.wire import encode

__all__ = ["STORE", "add_routes"]

STORE = web.AppKey("responses", ResponseStore)
"""Finished responses."""
LIVE = web.AppKey("live_responses", dict[str, tuple[str, Exchange]])
"""Responses in the making with their owners, for cancellation."""

Status = Literal["in_progress", "completed", "incomplete", "failed", "cancelled"]
_ENDS: dict[StopReason, tuple[Status, str | None]] = {
    StopReason.ANSWER: ("completed", None),
    StopReason.END_OF_TURN: ("completed", None),
    StopReason.ABORTED: ("incomplete", "aborted"),
    StopReason.ERROR: ("failed", None),
}
"""Status and reason; every limit is incomplete for `max_output_tokens`."""
_FAILED = {"code": "server_error", "message": "the engine failed while answering"}


def add_routes(app: web.Application) -> None:
    """Serve the Responses protocol."""
    config = app[CONFIG]
    app[STORE] = ResponseStore(max_entries=config.store_entries, ttl_s=config.store_ttl_s)
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
    caller = request[CALLER]
    earlier: tuple[Message, ...] = ()
    if body.previous_response_id is not None:
        stored = request.app[STORE].get(body.previous_response_id, owner=caller, param="previous_response_id")
        earlier = stored.messages
    ask = read_ask(body, earlier, request.app[CONFIG].admission)
    async with request.app[SERVICE].admitted(caller) as lease, Exchange(lease, ask) as exchange:
        reply = _Reply(model=request.app[MODEL_NAME], body=body, id=exchange.runs[0].id)
        request[TRAJECTORIES] = [reply.id]
        live = request.app[LIVE]
        live[reply.name] = caller, exchange
        try:
            answered = await (_stream if body.stream else _whole)(request, exchange, reply)
            (trajectory,) = await exchange.trajectories()
        finally:
            del live[reply.name]
        if body.store is not False:
            # Instructions hold for one request only, as the protocol has it.
            kept = ask.messages[body.instructions is not None :]
            entry = Stored(
                owner=caller,
                response=reply.whole(trajectory),
                input_items=_listed(body, reply.name),
                messages=(*kept, *answer_messages(trajectory, reply.said)),
                trajectory=encode(trajectory),
                tokenizer=lease.agent.model.tokenizer,
            )
            request.app[STORE].put(reply.name, entry)
        return answered


async def _whole(request: web.Request, exchange: Exchange, reply: _Reply) -> web.StreamResponse:
    async for batch in exchange.told(heartbeat_s=3600.0):
        for _ in reply.tell(batch):
            pass
    (trajectory,) = await exchange.trajectories()
    if trajectory.error is not None:
        raise Problem(502, _FAILED["message"], type="server_error", code="engine_error")
    for _ in reply.end(trajectory):
        pass
    return web.Response(body=msgspec.json.encode(reply.whole(trajectory)), content_type="application/json")


async def _stream(request: web.Request, exchange: Exchange, reply: _Reply) -> web.StreamResponse:
    config = request.app[CONFIG]
    stream = EventStream(request, write_timeout_s=config.admission.write_timeout_s)
    await stream.begin({"X-Request-Id": request[REQUEST_ID]})
    await stream.write(b"".join(reply.begin()))
    async for batch in exchange.told(heartbeat_s=config.heartbeat_s):
        await stream.write(b"".join(reply.tell(batch)))
    (trajectory,) = await exchange.trajectories()
    await stream.write(b"".join(reply.end(trajectory)))
    await stream.end()
    return stream.response


@dataclass(slots=True)
class _Reply:
    """Writes one response and its events."""

    model: str
    body: ResponsesRequest
    id: str
    created: int = field(default_factory=lambda: int(time.time()))
    sequence: int = 0
    words: list[str] = field(default_factory=list)
    writer: ItemWriter = field(init=False)

    def __post_init__(self) -> None:
        self.writer = ItemWriter(self.id)

    @property
    def name(self) -> str:
        """The response's id."""
        return f"resp_{self.id}"

    @property
    def said(self) -> str:
        """The answer's words."""
        return "".join(self.words)

    def begin(self) -> Iterator[bytes]:
        """Write the events that open a stream."""
        opened = self._response("in_progress", None, [], None)
        yield self._event({"type": "response.created", "response": opened})
        yield self._event({"type": "response.in_progress", "response": opened})

    def tell(self, batch: list[Told]) -> Iterator[bytes]:
        """Write the events of what was heard."""
        for told in batch:
            if told.heard.kind == "said":
                self.words.append(told.heard.text)
            for event in self.writer.feed(told.heard):
                yield self._event(event)

    def end(self, trajectory: Trajectory) -> Iterator[bytes]:
        """Write the events that close a stream."""
        for event in self.writer.abandon():
            yield self._event(event)
        response = self.whole(trajectory)
        outcome = "incomplete" if response["status"] == "cancelled" else response["status"]
        yield self._event({"type": f"response.{outcome}", "response": response})

    def whole(self, trajectory: Trajectory) -> dict[str, Any]:
        """Write the finished response."""
        status, reason = _ENDS.get(trajectory.stop_reason, ("incomplete", "max_output_tokens"))
        return self._response(status, reason, self.writer.items, trajectory)

    def _event(self, event: dict[str, Any]) -> bytes:
        event["sequence_number"] = self.sequence
        self.sequence += 1
        return encode_event(event, event=event["type"])

    def _response(
        self, status: Status, reason: str | None, output: list[dict[str, Any]], trajectory: Trajectory | None
    ) -> dict[str, Any]:
        body = self.body
        return {
            "id": self.name,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "background": False,
            "error": _FAILED if status == "failed" else None,
            "incomplete_details": None if reason is None else {"reason": reason},
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "model": self.model,
            "output": output,
            "parallel_tool_calls": True,
            "previous_response_id": body.previous_response_id,
            "reasoning": {"effort": None, "summary": None},
            "store": body.store is not False,
            "temperature": 1.0 if body.temperature is None else body.temperature,
            "text": {"format": {"type": "text"}},
            "tool_choice": body.tool_choice or "auto",
            "tools": msgspec.to_builtins(body.tools or []),
            "top_p": 1.0 if body.top_p is None else body.top_p,
            "truncation": "disabled",
            "usage": None if trajectory is None else _usage(trajectory),
            "metadata": body.metadata or {},
            "icrl": None if trajectory is None else _facts(trajectory),
        }


def _usage(trajectory: Trajectory) -> dict[str, Any]:
    usage = count([trajectory])
    return {
        "input_tokens": usage.prompt,
        "input_tokens_details": {"cached_tokens": usage.cached, "cache_write_tokens": 0},
        "output_tokens": usage.sampled,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt + usage.sampled,
        "icrl": {"observed_tokens": usage.observed},
    }


def _facts(trajectory: Trajectory) -> dict[str, Any]:
    return {"trajectory_id": trajectory.id, "stop_reason": str(trajectory.stop_reason)}


def _listed(body: ResponsesRequest, name: str) -> list[dict[str, Any]]:
    """Return the input as items with ids."""
    given = body.input
    items = [{"role": "user", "content": given}] if isinstance(given, str) else given
    return [{"id": f"in_{name}_{i}", "type": "message", **item} for i, item in enumerate(items)]


async def _retrieve(request: web.Request) -> web.Response:
    stored = request.app[STORE].get(request.match_info["id"], owner=request[CALLER])
    return web.json_response(stored.response)


async def _delete(request: web.Request) -> web.Response:
    name = request.match_info["id"]
    request.app[STORE].delete(name, owner=request[CALLER])
    return web.json_response({"id": name, "object": "response", "deleted": True})


async def _input_items(request: web.Request) -> web.Response:
    items = request.app[STORE].get(request.match_info["id"], owner=request[CALLER]).input_items
    first, last = (items[0]["id"], items[-1]["id"]) if items else (None, None)
    listed = {"object": "list", "data": items, "first_id": first, "last_id": last, "has_more": False}
    return web.json_response(listed)


async def _cancel(request: web.Request) -> web.Response:
    """End a response that is being made; its stream ends as incomplete with what there is."""
    name = request.match_info["id"]
    owner, exchange = request.app[LIVE].get(name, (None, None))
    if exchange is None or owner != request[CALLER]:
        request.app[STORE].get(name, owner=request[CALLER])
        raise invalid("id", f"{name} is finished already", code="response_finished")
    for run in exchange.runs:
        run.stop(StopReason.ABORTED)
    return web.json_response({"id": name, "object": "response", "status": "cancelled"})
