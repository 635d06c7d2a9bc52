"""`/generate`: from a request to its reply, whole or streamed, or to what goes wrong with it."""

from __future__ import annotations

import asyncio
import json
import uuid
from array import array
from dataclasses import dataclass

from aiohttp import web

from icrl.testing.script import Speaker
from icrl.testing.stub.adapters import Adapters
from icrl.testing.stub.faults import Fault, Faults
from icrl.testing.stub.live import Asked, Live, Sampler
from icrl.testing.stub.requests import Generate, Refusal, Sampling, parse
from icrl.testing.stub.wire import ReplyWriter
from icrl.tokenizer import Tokenizer

__all__ = ["Generator", "OutOfVocabulary", "refused", "session_of"]

JSON = "application/json"
GARBAGE = b"<html><body>upstream is having a moment</body></html>"


class OutOfVocabulary(Exception):
    """A request that kills the server."""


@dataclass(slots=True, eq=False, kw_only=True)
class Generator:
    """Answers `/generate`."""

    speaker: Speaker
    """Knows what to say."""
    sampler: Sampler
    """Holds what is being said."""
    tokenizer: Tokenizer
    """Turns sampled ids into text."""
    vocab_size: int
    """An id that is not below this kills the server."""
    context_limit: int
    """Tokens of prompt plus generation."""
    incremental: bool
    """Whether an event of a stream holds only what is new."""
    stream_interval: int
    """Tokens an event of a stream."""
    spans: bool
    """Whether weight versions are reported by token."""
    faults: Faults
    """What goes wrong."""
    record: bool
    """Whether requests are remembered."""
    requests: list[Asked]
    """What was asked, in order of arrival."""
    adapters: Adapters
    """LoRA adapters that requests may name."""
    arrived: int = 0
    """Requests so far."""

    async def answer(self, http: web.BaseRequest) -> web.StreamResponse:
        """Answer one request.

        Raises:
            Refusal: The request is not as it should be.
            OutOfVocabulary: An id is outside the vocabulary.
        """
        number, self.arrived = self.arrived, self.arrived + 1
        fault = self.faults.of(number)
        request, sampling = parse(await http.read())
        prompt = self._check(request, sampling)
        asked = Asked(
            number=number,
            arrived_s=asyncio.get_running_loop().time(),
            rid=request.rid or uuid.uuid4().hex,
            ids=array("i", prompt),
            key=request.extra_key,
            adapter=request.lora_path,
            fault=fault,
        )
        if self.record:
            self.requests.append(asked)
        await _go_wrong(http, fault, self.faults.slow_s)
        await self.sampler.going.wait()
        if request.lora_path is None:
            return await self._say(http, asked, request, sampling)
        lora_id = await self.adapters.named(request.lora_path)
        asked.key = (asked.key or "") + lora_id
        try:
            return await self._say(http, asked, request, sampling)
        finally:
            self.adapters.left(lora_id)

    async def _say(
        self, http: web.BaseRequest, asked: Asked, request: Generate, sampling: Sampling
    ) -> web.StreamResponse:
        prompt = asked.ids
        budget = min(sampling.max_new_tokens, self.context_limit - len(prompt))
        said = self.speaker.reply(prompt, budget=budget, stop=sampling.stops, session=session_of(asked.rid))
        live = self.sampler.start(asked, said)
        writer = ReplyWriter(
            live, request, sampling, self.tokenizer, incremental=request.stream and self.incremental, spans=self.spans
        )
        try:
            return await (self._stream if request.stream else self._whole)(http, live, writer, sampling)
        finally:
            self.sampler.end(live)

    def _check(self, request: Generate, sampling: Sampling) -> list[int]:
        prompt = request.input_ids
        if prompt is None:
            raise Refusal.said("Either text, input_ids or input_embeds should be provided.")
        if not prompt:
            raise Refusal.said("input_ids cannot be empty.")
        for token in request.token_ids_logprob or ():
            if not 0 <= token < self.vocab_size:
                raise Refusal.said(
                    f"token_ids_logprob contains out-of-vocabulary token id {token}; "
                    f"valid range is [0, {self.vocab_size})."
                )
        self._check_length(len(prompt), sampling.max_new_tokens)
        if max(prompt) >= self.vocab_size or min(prompt) < 0:
            raise OutOfVocabulary
        return prompt

    def _check_length(self, prompt: int, budget: int) -> None:
        limit = self.context_limit
        if prompt >= limit:
            raise Refusal.said(
                f"The input ({prompt} tokens) is longer than the model's context length ({limit} tokens)."
            )
        if prompt + budget > limit:
            raise Refusal.said(
                f"Requested token count exceeds the model's maximum context length of {limit} tokens. You requested "
                f"a total of {prompt + budget} tokens: {prompt} tokens from the input messages and {budget} tokens "
                "for the completion. Please reduce the number of tokens in the input messages or the completion to "
                "fit within the limit."
            )

    async def _whole(
        self, http: web.BaseRequest, live: Live, writer: ReplyWriter, sampling: Sampling
    ) -> web.StreamResponse:
        produced = await live.job.reach(live.job.total)
        body = writer.piece(produced, over=True, weight_version=self.sampler.version)
        if live.asked.fault == "garbage":
            body = GARBAGE
        if live.asked.fault == "truncated":
            body = body[: len(body) // 2]
        if live.asked.fault == "dies_mid_stream":
            return await _break_off(http, body)
        return web.Response(body=body, content_type=JSON)

    async def _stream(
        self, http: web.BaseRequest, live: Live, writer: ReplyWriter, sampling: Sampling
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        response.enable_chunked_encoding()
        await response.prepare(http)
        interval = sampling.stream_interval or self.stream_interval
        breaks_at = live.job.total // 2 if live.asked.fault in ("truncated", "dies_mid_stream", "garbage") else None
        over, produced = False, 0
        while not over:
            produced = await live.job.reach(produced + interval)
            over = live.job.over
            if breaks_at is not None and produced > breaks_at:
                return await _break_stream(http, response, live.asked.fault)
            piece = writer.piece(produced, over=over, weight_version=self.sampler.version)
            await response.write(b"data: %b\n\n" % piece)
        await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        return response


async def _go_wrong(http: web.BaseRequest, fault: Fault | None, slow_s: float) -> None:
    """Do what a fault does before anything is sampled."""
    if fault == "error_500":
        raise Refusal(500, {"error": {"message": "the scheduler hit an exception"}})
    if fault == "error_429":
        raise Refusal(429, {"object": "error", "message": "the waiting queue is full", "code": 429})
    if fault == "resets":
        await _reset(http)
    if fault == "slow":
        await asyncio.sleep(slow_s)


async def _reset(http: web.BaseRequest) -> None:
    """Break the connection; whoever handles the request is cancelled for it."""
    if http.transport is not None:
        http.transport.abort()
    await asyncio.Event().wait()


async def _break_off(http: web.BaseRequest, body: bytes) -> web.StreamResponse:
    """Promise a whole reply, send half of it, and break the connection."""
    response = web.StreamResponse(headers={"Content-Type": JSON, "Content-Length": str(len(body))})
    await response.prepare(http)
    await response.write(body[: len(body) // 2])
    await _reset(http)
    return response


async def _break_stream(http: web.BaseRequest, response: web.StreamResponse, fault: Fault | None) -> web.StreamResponse:
    """End a stream in the middle: politely, with garbage, or by breaking the connection."""
    if fault == "dies_mid_stream":
        await response.write(b'data: {"text":"')
        await _reset(http)
    if fault == "garbage":
        await response.write(b"data: " + GARBAGE + b"\n\n")
    await response.write_eof()
    return response


def session_of(rid: str) -> str | None:
    """Return the session that a request belongs to by its name, as icrl forms them.

    Example:
        >>> session_of("icrl-5f3a-17/t0/2"), session_of("t0/2"), session_of("r")
        ('t0', 't0', None)
    """
    name = rid.partition("/")[2] if rid.startswith("icrl-") else rid
    return name.rpartition("/")[0] or None


def refused(refusal: Refusal) -> web.Response:
    """Return the reply of a refused request."""
    return web.Response(status=refusal.status, body=json.dumps(refusal.body).encode(), content_type=JSON)
