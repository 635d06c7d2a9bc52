"""A server that speaks SGLang's native protocol and says what it is told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from aiohttp import web

from icrl.errors import ConfigError, EngineError
from icrl.testing.script import Reply, Script, Speaker
from icrl.testing.stub.adapters import Adapters
from icrl.testing.stub.capacity import Capacity
from icrl.testing.stub.faults import Faults
from icrl.testing.stub.generate import Generator, OutOfVocabulary, refused
from icrl.testing.stub.info import About
from icrl.testing.stub.live import Asked, Sampler
from icrl.testing.stub.requests import Body, Refusal, parse_body
from icrl.testing.stub.weights import Update, Weights
from icrl.testing.tokenizer import ByteTokenizer
from icrl.tokenizer import Tokenizer

__all__ = ["SGLangStub"]

_OPEN = ("/health", "/ready", "/metrics")
_MAX_BODY_BYTES = 1 << 32
_SHUTDOWN_S = 0.1


@dataclass(slots=True)
class _Refused:
    """What a path answers instead of doing its work."""

    status: int
    body: Any
    left: int


class SGLangStub:
    """A server that speaks SGLang's native protocol and says what it is told.

    It listens on a free port of this machine, in the event loop of whoever opens it. Replies end as a model's do: at
    an end token, a stop string, or the token budget; log-probabilities are `fake_logprob`. Weights are only names,
    but the order of calls that a server of its version insists on is insisted on. An id outside the vocabulary kills
    it, as it kills the real one.

    Args:
        replies: What to say: a function of the ids so far, or the replies of a session's turns in order. Requests
            whose names are equal up to the last `/` are one session, as those of a trajectory's turns are.
        tokenizer: Encodes replies and decodes what was sampled.
        version: Version of SGLang whose shapes it has.
        context_limit: Tokens of prompt plus generation.
        vocab_size: One more than the largest id that it survives; the tokenizer's where it is not given.
        model_path: The directory that it says its model is in.
        capacity: How fast it is; without one, replies come at once.
        faults: Which requests go wrong.
        incremental: Whether an event of a stream holds only what is new.
        stream_interval: Tokens an event of a stream.
        kv_tokens: Tokens that its memory is said to hold.
        keep_alive_s: Seconds after which an idle connection is closed.
        api_key: What requests have to present, as a bearer token.
        metrics: Whether there is `/metrics`.
        record: Whether requests are remembered.
        loras: How many LoRA adapters it holds; `None` is a server that was started without them.

    Raises:
        ConfigError: The version is no version.

    Example:
        >>> async def ask() -> dict:
        ...     async with SGLangStub(["<answer> 42 </answer>"]) as stub, aiohttp.ClientSession() as client:
        ...         async with client.post(f"{stub.address}/generate", json={"input_ids": [63], "rid": "t/0"}) as reply:
        ...             meta = (await reply.json())["meta_info"]
        ...         return stub.seen["t/0"], bytes(stub.sampled["t/0"][:-1]), meta["finish_reason"]
        >>> import aiohttp
        >>> asyncio.run(ask())
        ((63,), b'<answer> 42 </answer>', {'type': 'stop', 'matched': 258})
    """

    def __init__(
        self,
        replies: Script | Sequence[Reply],
        *,
        tokenizer: Tokenizer | None = None,
        version: str = "0.5.23",
        context_limit: int = 32_768,
        vocab_size: int | None = None,
        model_path: str = "scripted",
        capacity: Capacity | None = None,
        faults: Faults | None = None,
        incremental: bool = False,
        stream_interval: int = 1,
        kv_tokens: int = 1_048_576,
        keep_alive_s: float = 5.0,
        api_key: str | None = None,
        metrics: bool = True,
        record: bool = True,
        loras: int | None = None,
    ) -> None:
        self.tokenizer: Tokenizer = tokenizer or ByteTokenizer()
        """Encodes replies and decodes what was sampled."""
        self.version = version
        """Version of SGLang that it says it is."""
        self.requests: list[Asked] = []
        """What `/generate` was asked, in order of arrival, and what became of it; survives its death."""
        self.calls: list[str] = []
        """Paths of all other requests, in order of arrival."""
        self.deaths = 0
        """How often it died."""
        self._release = _release(version)
        self._context_limit = context_limit
        self._vocab_size = vocab_size or self.tokenizer.vocab_size
        self._model_path = model_path
        self._capacity = capacity
        self._kv_tokens = kv_tokens
        self._metrics = metrics
        self._loras = loras
        self._api_key = api_key
        self._keep_alive_s = keep_alive_s
        self._port = 0
        self._server: web.Server | None = None
        self._listener: asyncio.Server | None = None
        self._refusals: dict[str, _Refused] = {}
        self._generate: dict[str, Any] = {
            "speaker": Speaker(replies, self.tokenizer, name="stub"),
            "incremental": incremental,
            "stream_interval": stream_interval,
            "faults": faults or Faults(),
            "record": record,
        }

    @property
    def address(self) -> str:
        """`http://127.0.0.1:port`; the port stays the same over its deaths."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def seen(self) -> dict[str, tuple[int, ...]]:
        """Ids that it was sent, by the request's name."""
        return {asked.rid: tuple(asked.ids) for asked in self.requests}

    @property
    def sampled(self) -> dict[str, tuple[int, ...]]:
        """Ids that it sampled, by the request's name."""
        return {asked.rid: tuple(asked.sampled) for asked in self.requests}

    @property
    def live(self) -> frozenset[str]:
        """Names of the requests that are being answered now."""
        return frozenset(self._sampler.live)

    @property
    def weight_version(self) -> str:
        """Name of its weights."""
        return self._sampler.version

    @property
    def updates(self) -> list[Update]:
        """Weight updates since it started, in order."""
        return self._weights.updates

    @property
    def adapters(self) -> Adapters:
        """LoRA adapters since it started."""
        return self._adapters

    @property
    def alive(self) -> bool:
        """Whether it listens."""
        return self._listener is not None

    @property
    def capacity(self) -> Capacity | None:
        """How fast it is; may be changed at any time."""
        return self._sampler.batch.capacity

    @capacity.setter
    def capacity(self, capacity: Capacity | None) -> None:
        self._capacity = self._sampler.batch.capacity = capacity

    async def start(self) -> None:
        """Listen; with a state as after a start of the process."""
        self._sampler = Sampler(capacity=self._capacity)
        self._adapters = Adapters(most=self._loras)
        self._weights = Weights(sampler=self._sampler, brackets=self._release >= (0, 5, 21))
        about = About(
            sampler=self._sampler,
            version=self.version,
            model_path=self._model_path,
            context_limit=self._context_limit,
            kv_tokens=self._kv_tokens,
            metrics=self._metrics,
            incremental=self._generate["incremental"],
            loras=self._loras,
        )
        generator = Generator(
            sampler=self._sampler,
            tokenizer=self.tokenizer,
            vocab_size=self._vocab_size,
            context_limit=self._context_limit,
            spans=self._release >= (0, 5, 19),
            requests=self.requests,
            arrived=len(self.requests),
            adapters=self._adapters,
            **self._generate,
        )
        self._gets, self._text = about.routes(self._release), about.text
        self._posts = self._weights.routes() | self._adapters.routes()
        self._answer = generator.answer
        await self._listen()

    async def restart(self) -> None:
        """Start again on the same port, with the first weights and nothing remembered of requests."""
        if self.alive:
            self.kill()
        await self.start()

    def kill(self) -> None:
        """Die: every connection breaks, and nobody listens."""
        if self.alive:
            self.deaths += 1
            self._close()

    def _close(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        for connection in self._server.connections if self._server else ():
            if connection.transport is not None:
                connection.transport.abort()

    def refuse(self, path: str, *, status: int = 500, body: Any = None, times: int = 1) -> None:
        """Answer the next requests to a path with an error instead of doing their work.

        Args:
            path: Such as `/update_weights_from_disk`.
            status: HTTP status.
            body: What is said, as JSON.
            times: How many requests.
        """
        self._refusals[path] = _Refused(status, body or {"error": {"message": f"{path} was to fail"}}, times)

    async def aclose(self) -> None:
        """Stop listening and break every connection."""
        self._close()
        await self._end_handlers()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _end_handlers(self) -> None:
        """Let the handlers of broken connections end."""
        if self._server is not None:
            await self._server.shutdown(_SHUTDOWN_S)
            self._server = None

    async def _listen(self) -> None:
        await self._end_handlers()
        loop = asyncio.get_running_loop()
        self._server = web.Server(
            self._handle,
            request_factory=self._request,
            handler_cancellation=True,
            access_log=None,
            keepalive_timeout=self._keep_alive_s,
        )
        self._listener = await loop.create_server(self._server, "127.0.0.1", self._port, backlog=4096)
        self._port = self._listener.sockets[0].getsockname()[1]

    @staticmethod
    def _request(message: Any, payload: Any, protocol: Any, writer: Any, task: Any) -> web.BaseRequest:
        loop = asyncio.get_running_loop()
        return web.BaseRequest(message, payload, protocol, writer, task, loop, client_max_size=_MAX_BODY_BYTES)

    async def _handle(self, http: web.BaseRequest) -> web.StreamResponse:
        try:
            self._admit(http)
            if http.path == "/generate" and http.method == "POST":
                return await self._answer(http)
            self.calls.append(http.path)
            return await self._control(http)
        except Refusal as refusal:
            return refused(refusal)
        except EngineError as error:  # the script has nothing left to say
            return refused(Refusal.said(str(error), status=500))
        except OutOfVocabulary:
            self.kill()
            await asyncio.Event().wait()
            raise

    def _admit(self, http: web.BaseRequest) -> None:
        known = self._api_key is None or http.headers.get("Authorization") == f"Bearer {self._api_key}"
        if not known and not http.path.startswith(_OPEN):
            raise Refusal(401, {"error": "Unauthorized"})
        if http.path in self._refusals and self._refusals[http.path].left > 0:
            refusal = self._refusals[http.path]
            refusal.left -= 1
            raise Refusal(refusal.status, refusal.body)

    async def _control(self, http: web.BaseRequest) -> web.StreamResponse:
        if http.path in self._gets:
            return _json(self._gets[http.path]())
        if http.path in self._posts:
            return _json(await self._posts[http.path](parse_body(await http.read())))
        named: Mapping[str, Callable[[Body], web.Response]] = {
            "/abort_request": self._abort,
            "/pause_generation": self._pause,
            "/continue_generation": self._continue,
            "/health": lambda _: web.Response(),
            "/health_generate": lambda _: web.Response(),
            "/ping": lambda _: web.Response(),
        }
        if self._release >= (0, 5, 20):
            named = {**named, "/ready": lambda _: web.Response(status=503 if self._sampler.paused else 200)}
        if self._metrics:
            named = {**named, "/metrics": lambda _: web.Response(text=self._text())}
        if http.path == "/flush_cache":
            return await self._flush(float(http.query.get("timeout", 0.0)))
        if http.path not in named:
            raise Refusal(404, {"detail": "Not Found"})
        return named[http.path](parse_body(await http.read()))

    def _abort(self, body: Body) -> web.Response:
        if body.abort_all:
            self._sampler.abort_all()
        else:
            self._sampler.abort(body.rid)
        return web.Response()

    def _pause(self, body: Body) -> web.Response:
        self._sampler.pause(body.mode)
        return _json({"message": "Generation paused successfully.", "status": "ok"})

    def _continue(self, body: Body) -> web.Response:
        self._sampler.proceed()
        return _json({"message": "Generation continued successfully.", "status": "ok"})

    async def _flush(self, timeout_s: float) -> web.Response:
        """Drop what is cached, unless requests use it; with a timeout, wait until there is no request at all."""
        if timeout_s > 0:
            try:
                await asyncio.wait_for(self._sampler.idle.wait(), timeout_s)
            except TimeoutError:
                return web.Response(status=400, text="Timed out waiting for idle state.")
        if not all(live.retractions for live in self._sampler.live.values()):
            return web.Response(status=400, text="Flush cache failed.\n")
        self._sampler.caches.clear()
        return web.Response(text="Cache flushed.\n")


def _json(value: Any) -> web.Response:
    return web.Response(body=json.dumps(value).encode(), content_type="application/json")


def _release(version: str) -> tuple[int, ...]:
    numbers = version.split(".")[:3]
    if len(numbers) != 3 or not all(number.isdigit() for number in numbers):
        raise ConfigError(f"SGLangStub.version: {version!r} is no version; write '0.5.23'")
    return tuple(map(int, numbers))
