"""`POST /v1/chat/completions`: OpenAI's chat protocol over the loop.

The model's answer is the message. Tools that the server ran are not `tool_calls`, which a client would try to run
again; they are told in the extension field `icrl`, and reasoning in both fields that clients read.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec
from aiohttp import web

from icrl.serve.body import read_body
from icrl.serve.chat_request import ChatRequest, read_ask
from icrl.serve.exchange import Exchange, Told
from icrl.serve.keys import CALLER, CONFIG, MODEL_NAME, REQUEST_ID, SERVICE, TRAJECTORIES
from icrl.serve.models import check_model
from icrl.serve.narration import Heard
from icrl.serve.problem import Problem
from icrl.serve.stream import EventStream, encode_event
from icrl.serve.usage import count
from icrl.tokenizer import Tokenizer
from icrl.trajectory import StopReason, Trajectory

__all__ = ["add_routes"]

_DONE = b"data: [DONE]\n\n"
_FINISHED = {
    StopReason.ANSWER: "stop",
    StopReason.END_OF_TURN: "stop",
    StopReason.ABORTED: "stop",
}
"""OpenAI's finish reasons; every limit is `length`."""


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
        request[TRAJECTORIES] = [run.id for run in exchange.runs]
        reply = _Reply(model=request.app[MODEL_NAME], body=body, tokenizer=lease.agent.model.tokenizer)
        if body.stream:
            return await _stream(request, exchange, reply)
        return await _whole(exchange, reply)


async def _whole(exchange: Exchange, reply: _Reply) -> web.Response:
    async for batch in exchange.told(heartbeat_s=3600.0):
        for told in batch:
            reply.choices[told.choice].hear(told.heard)
    trajectories = await exchange.trajectories()
    for trajectory in trajectories:
        if trajectory.error is not None:
            raise engine_failed()
    return web.Response(body=msgspec.json.encode(reply.whole(exchange, trajectories)), content_type="application/json")


async def _stream(request: web.Request, exchange: Exchange, reply: _Reply) -> web.StreamResponse:
    config = request.app[CONFIG]
    stream = EventStream(request, write_timeout_s=config.admission.write_timeout_s)
    await stream.begin({"X-Request-Id": request[REQUEST_ID]})
    opening: dict[str, Any] = {"role": "assistant", "content": ""}
    await stream.write(b"".join(reply.chunk(exchange, index, opening) for index in range(len(exchange.runs))))
    async for batch in exchange.told(heartbeat_s=config.heartbeat_s):
        await stream.write(b"".join(reply.tell(exchange, batch)))
    await stream.write(reply.ending(exchange, await exchange.trajectories()))
    await stream.end()
    return stream.response


def engine_failed() -> Problem:
    """Return what a client is told when the engine broke; why is in the server's log only."""
    return Problem(502, "the engine failed while answering", type="server_error", code="engine_error")


@dataclass(slots=True)
class _Choice:
    """What was told of one run."""

    thoughts: list[str] = field(default_factory=list)
    said: dict[int, list[str]] = field(default_factory=lambda: defaultdict(list))
    calls: dict[str, dict[str, Any]] = field(default_factory=dict)

    def hear(self, heard: Heard) -> dict[str, Any] | None:
        """Remember something and return what it adds to the message."""
        match heard.kind:
            case "thought":
                self.thoughts.append(heard.text)
                return {"reasoning": heard.text, "reasoning_content": heard.text}
            case "said":
                self.said[heard.turn].append(heard.text)
                return {"content": heard.text}
            case "call" | "result":
                return {"icrl": {"tool_calls": [self._called(heard)]}}
        return None

    def _called(self, heard: Heard) -> dict[str, Any]:
        """Describe a call that the server ran, or add its outcome; clients join entries of one index."""
        call, result = heard.call, heard.result
        if call is None:
            return {}
        if result is None:
            self.calls[call.id] = {
                "index": len(self.calls),
                "id": call.id,
                "name": call.name,
                "arguments": dict(call.arguments),
            }
            return self.calls[call.id]
        outcome = {"output": result.text, "error": result.error, "wall_s": round(result.wall_s, 6)}
        self.calls[call.id] = self.calls[call.id] | outcome
        return {"index": self.calls[call.id]["index"], **outcome}

    @property
    def content(self) -> str:
        return "".join(word for words in self.said.values() for word in words)


@dataclass(slots=True)
class _Reply:
    """Writes one answer in the protocol's words."""

    model: str
    body: ChatRequest
    tokenizer: Tokenizer
    created: int = field(default_factory=lambda: int(time.time()))
    choices: dict[int, _Choice] = field(default_factory=lambda: defaultdict(_Choice))

    def whole(self, exchange: Exchange, trajectories: list[Trajectory]) -> dict[str, Any]:
        """Write the whole answer."""
        listed = []
        for index, trajectory in enumerate(trajectories):
            choice = self.choices[index]
            thought = "".join(choice.thoughts) or None
            message = {
                "role": "assistant",
                "content": choice.content,
                "refusal": None,
                "reasoning": thought,
                "reasoning_content": thought,
                "icrl": _facts(trajectory) | {"tool_calls": list(choice.calls.values())},
            }
            listed.append(
                {
                    "index": index,
                    "message": message,
                    "finish_reason": _finish_reason(exchange, index, trajectory),
                    "logprobs": self._logprobs(index, trajectory),
                }
            )
        return self._envelope(exchange, "chat.completion") | {"choices": listed, "usage": _usage(trajectories)}

    def tell(self, exchange: Exchange, batch: list[Told]) -> Iterator[bytes]:
        """Write what was told as chunks."""
        for told in batch:
            delta = self.choices[told.choice].hear(told.heard)
            if delta is not None:
                yield self.chunk(exchange, told.choice, delta)

    def chunk(self, exchange: Exchange, index: int, delta: dict[str, Any]) -> bytes:
        """Write one chunk of one choice."""
        choice = {"index": index, "delta": delta, "finish_reason": None, "logprobs": None}
        return encode_event(self._envelope(exchange, "chat.completion.chunk") | {"choices": [choice]})

    def ending(self, exchange: Exchange, trajectories: list[Trajectory]) -> bytes:
        """Write the last chunk of every choice, the usage where it is wanted, and the end mark."""
        envelope = self._envelope(exchange, "chat.completion.chunk")
        events: list[bytes] = []
        for index, trajectory in enumerate(trajectories):
            if trajectory.error is not None:
                return b"".join(events) + encode_event({"error": engine_failed().error()}) + _DONE
            choice = {
                "index": index,
                "delta": {"icrl": _facts(trajectory)},
                "finish_reason": _finish_reason(exchange, index, trajectory),
                "logprobs": self._logprobs(index, trajectory),
            }
            events.append(encode_event(envelope | {"choices": [choice]}))
        if self.body.stream_options is not None and self.body.stream_options.include_usage:
            events.append(encode_event(envelope | {"choices": [], "usage": _usage(trajectories)}))
        return b"".join(events) + _DONE

    def _envelope(self, exchange: Exchange, kind: str) -> dict[str, Any]:
        return {
            "id": f"chatcmpl-{exchange.runs[0].id}",
            "object": kind,
            "created": self.created,
            "model": self.model,
        }

    def _logprobs(self, index: int, trajectory: Trajectory) -> dict[str, Any] | None:
        """List the tokens of the answer's words; a token counts if a part of it is said."""
        if not self.body.logprobs:
            return None
        said = {turn: "".join(words) for turn, words in self.choices[index].said.items()}
        content = []
        for segment in trajectory.response:
            words = said.get(segment.turn, "") if segment.source == "policy" else ""
            if not words or segment.logprobs is None or (at := segment.text.rfind(words)) < 0:
                continue
            start, end = self.tokenizer.locate(segment.ids, at, at + len(words))
            content += [
                _token(self.tokenizer.decode([token]), logprob)
                for token, logprob in zip(segment.ids[start:end], segment.logprobs[start:end], strict=True)
            ]
        return {"content": content, "refusal": None}


def _token(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode()), "top_logprobs": []}


def _finish_reason(exchange: Exchange, index: int, trajectory: Trajectory) -> str:
    return "stop" if index in exchange.cut else _FINISHED.get(trajectory.stop_reason, "length")


def _facts(trajectory: Trajectory) -> dict[str, Any]:
    """Tell what the protocol has no field for."""
    return {
        "trajectory_id": trajectory.id,
        "stop_reason": str(trajectory.stop_reason),
        "wall_s": round(trajectory.wall_s, 6),
    }


def _usage(trajectories: list[Trajectory]) -> dict[str, Any]:
    usage = count(trajectories)
    return {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.sampled,
        "total_tokens": usage.prompt + usage.sampled,
        "prompt_tokens_details": {"cached_tokens": usage.cached},
        "icrl": {"observed_tokens": usage.observed},
    }
