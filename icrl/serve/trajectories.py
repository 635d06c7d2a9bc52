"""`POST /v1/trajectories`: the token-exact trajectory of a query, for people who train."""

from __future__ import annotations

from dataclasses import replace

import msgspec
from aiohttp import web

from icrl.serve.ask import Ask, Seed
from icrl.serve.body import read_body
from icrl.serve.exchange import Exchange
from icrl.serve.keys import CALLER, CONFIG, SERVICE, TRAJECTORIES
from icrl.serve.problem import invalid
from icrl.serve.sampling import read_sampling
from icrl.trajectory import Failure, Trajectory
from icrl.types import Message
from icrl.wire import encode

__all__ = ["add_routes"]


class TrajectoryRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A question and how to sample; several trajectories on the same prompt make a group."""

    query: str
    n: int = 1
    seed: Seed | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int | None = None


def add_routes(app: web.Application) -> None:
    """Serve trajectories."""
    app.router.add_post("/v1/trajectories", _create)


async def _create(request: web.Request) -> web.Response:
    """Answer with `{"object": "list", "data": [trajectory, …]}`; each is what `icrl.wire` reads."""
    body = await read_body(request, TrajectoryRequest)
    if not 1 <= body.n <= request.app[CONFIG].admission.max_choices:
        raise invalid("n", f"must be from 1 to {request.app[CONFIG].admission.max_choices}, not {body.n}")
    async with (
        request.app[SERVICE].admitted(request[CALLER]) as lease,
        Exchange(lease, _ask(body), choices=body.n) as exchange,
    ):
        request[TRAJECTORIES] = [run.id for run in exchange.runs]
        trajectories = await exchange.trajectories()
    listed = b",".join(encode(_discreet(trajectory)) for trajectory in trajectories)
    return web.Response(body=b'{"object":"list","data":[' + listed + b"]}", content_type="application/json")


def _discreet(trajectory: Trajectory) -> Trajectory:
    """Say that something broke, but not what it said: messages name addresses and files of this machine."""
    if trajectory.error is None:
        return trajectory
    return replace(trajectory, error=Failure(kind=trajectory.error.kind, message="the engine failed while answering"))


def _ask(body: TrajectoryRequest) -> Ask:
    if not body.query:
        raise invalid("query", "is empty")
    if body.max_tokens is not None and body.max_tokens < 1:
        raise invalid("max_tokens", f"must be >= 1, not {body.max_tokens}")
    return Ask(
        messages=(Message(role="user", content=body.query),),
        sampling=read_sampling(body.temperature, body.top_p),
        seed=body.seed,
        max_tokens=body.max_tokens,
        place="query",
    )
