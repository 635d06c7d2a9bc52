"""Reading what a server streams, as clients do."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from aiohttp import ClientResponse

from icrl.events import Event, RunFinished
from icrl.serve.service import Service
from icrl.testing import ScriptedEngine
from icrl.trajectory import Generation, Trajectory
from icrl.types import SamplingParams


class Sent(NamedTuple):
    """One server-sent event."""

    event: str
    """Its name; empty where there is none."""
    data: Any
    """What it carries, decoded; the text itself where that is no JSON; `None` for a comment."""


def parse(block: str) -> Sent:
    """Read one event."""
    fields = dict(line.split(": ", 1) for line in block.splitlines())
    data = fields.get("data")
    if data is None:
        return Sent("", None)
    return Sent(fields.get("event", ""), json.loads(data) if data.startswith("{") else data)


async def sent(response: ClientResponse) -> AsyncIterator[Sent]:
    """Yield events as they arrive, comments included."""
    buffer = ""
    async for line in response.content:
        buffer += line.decode()
        if buffer.endswith("\n\n"):
            yield parse(buffer.strip("\n"))
            buffer = ""
    assert not buffer, "a stream ends with a whole event"


async def events_of(response: ClientResponse) -> list[Sent]:
    """Return all events without the comments."""
    assert response.status == 200, await response.text()
    return [event async for event in sent(response) if event.data is not None]


def joined(chunks: list[Sent], index: int = 0) -> dict[str, Any]:
    """Put the chunks of one choice of a chat stream together, as clients do."""
    assert chunks[-1].data == "[DONE]"
    message: dict[str, Any] = {"content": "", "reasoning": "", "reasoning_content": "", "calls": {}, "icrl": {}}
    for chunk in chunks[:-1]:
        message["usage"] = chunk.data.get("usage", message.get("usage"))
        for choice in chunk.data["choices"]:
            if choice["index"] == index:
                _add(message, choice)
    return message


def _add(message: dict[str, Any], choice: dict[str, Any]) -> None:
    delta = choice["delta"]
    for name in ("content", "reasoning", "reasoning_content"):
        message[name] += delta.get(name, "")
    for call in delta.get("icrl", {}).get("tool_calls", ()):
        message["calls"].setdefault(call["index"], {}).update(call)
    message["icrl"] |= {k: v for k, v in delta.get("icrl", {}).items() if k != "tool_calls"}
    message["finish_reason"] = choice["finish_reason"]
    message["logprobs"] = choice["logprobs"]


def ask(text: str = "Who?", **fields: Any) -> dict[str, Any]:
    """Write a chat request of one user message."""
    return {"messages": [{"role": "user", "content": text}], **fields}


class Brittle(ScriptedEngine):
    """A scripted engine that breaks once it has said some tokens."""

    def __init__(self, replies: Any, error: Exception, *, after: int = 0, **options: Any) -> None:
        super().__init__(replies, **options)
        self._error = error
        self._after = after
        self.broken = False

    async def generate(self, ids: Sequence[int], params: SamplingParams, **options: Any) -> Generation:
        generation = await super().generate(ids, replace(params, max_tokens=self._after or 1), **options)
        if self.broken:
            raise self._error
        return generation


def finished_runs(service: Service) -> list[Trajectory]:
    """Return a list that every trajectory of a service is put into, in the order of their ends."""
    ended: list[Trajectory] = []

    def watch(run_id: str) -> Callable[[Event], None]:
        return lambda event: ended.append(event.trajectory) if isinstance(event, RunFinished) else None

    service.watchers.append(watch)
    return ended
