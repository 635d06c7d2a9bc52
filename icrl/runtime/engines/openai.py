"""Any OpenAI-compatible chat endpoint as an engine, for running agents; it gives text only, so it cannot train."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from icrl.errors import ConfigError, EngineError
from icrl.runtime.engines.openai_chat import Events, StopText, messages_of
from icrl.runtime.engines.protocol import EngineInfo, OnDelta, check_request
from icrl.runtime.engines.sglang.client import BrokenReply, Client
from icrl.runtime.engines.text_tokenizer import END, TextTokenizer
from icrl.trajectory import FinishReason, Generation, VersionSpan
from icrl.types import SamplingParams

__all__ = ["OpenAIConfig", "OpenAIEngine"]

KEY_VARIABLE = "OPENAI_API_KEY"


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenAIConfig:
    """How an endpoint is spoken to."""

    context_limit: int = 131_072
    """Tokens of prompt plus reply, in the engine's own tokens of up to three bytes; the endpoint does not tell its."""
    stall_s: float = 120.0
    """Seconds without a byte after which a reply counts as broken."""
    give_up_s: float = 60.0
    """Seconds for which a request is tried again that failed before anything of a reply came."""
    longest_wait_s: float = 10.0
    """Bound of the waits between attempts, which are drawn evenly below bounds that double."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of the request's body, as the endpoint names them."""

    def __post_init__(self) -> None:
        for name in ("context_limit", "stall_s", "give_up_s", "longest_wait_s"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"OpenAIConfig.{name}: must be > 0, not {getattr(self, name)!r}")


@dataclass(slots=True, eq=False)
class _Live:
    """A request that is under way."""

    scope: asyncio.Timeout
    ids: list[int] = field(default_factory=list)
    aborted: bool = False


class OpenAIEngine:
    """An endpoint that completes chats, `POST URL/chat/completions`.

    The ids of its generations are those of `TextTokenizer`. Every reply that is complete is closed with the mark that
    ends a turn, so that what follows it, results of tools included, is a message of its own. Log-probabilities are 0.0
    and mean nothing.

    Args:
        url: Where the API begins, such as `https://api.openai.com/v1`.
        model: Which of its models; the only one by default.
        api_key: Sent as a bearer token; by default the variable OPENAI_API_KEY.
        config: How it is spoken to.

    Raises:
        ConfigError: The address is none.

    Example:
        >>> engine = OpenAIEngine("http://127.0.0.1:8000/v1", model="icrl")
        >>> engine.info.name, "logprobs" in engine.info.capabilities
        ('openai:http://127.0.0.1:8000/v1#icrl', False)
    """

    def __init__(
        self, url: str, *, model: str | None = None, api_key: str | None = None, config: OpenAIConfig | None = None
    ) -> None:
        self.config = config or OpenAIConfig()
        self.client = Client(url, api_key=api_key or os.environ.get(KEY_VARIABLE))
        self.model = model
        """Which model is asked."""
        self.tokenizer = TextTokenizer()
        """What its ids mean."""
        self._live: dict[str, _Live] = {}
        self._closed = False

    @classmethod
    def at(cls, address: str) -> OpenAIEngine:
        """Make an engine of `URL` or `URL#MODEL`.

        Raises:
            ConfigError: The address is none.
        """
        url, _, model = address.partition("#")
        return cls(url, model=model or None)

    @property
    def info(self) -> EngineInfo:
        """What the engine can do."""
        return EngineInfo(
            name=f"openai:{self.client.address}" + (f"#{self.model}" if self.model else ""),
            vocab_size=self.tokenizer.vocab_size,
            context_limit=self.config.context_limit,
            capabilities=frozenset({"abort", "deltas"}),
        )

    async def start(self) -> None:
        """Find out which model is served, unless one was named.

        Raises:
            ConfigError: There are several.
            EngineError: The endpoint does not answer, or lists no models.
        """
        if self.model is not None:
            return
        names = _names(await self.client.get("/models", timeout_s=self.config.stall_s), self.info.name)
        if len(names) != 1:
            listed = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
            raise ConfigError(f"model: {self.info.name} serves {listed}; name one: {self.info.name}#{names[0]}")
        self.model = names[0]

    async def generate(
        self,
        ids: Sequence[int],
        params: SamplingParams,
        *,
        request_id: str,
        session: str | None = None,
        shared_prefix: int = 0,
        on_delta: OnDelta | None = None,
    ) -> Generation:
        """Ask for the next message of a conversation.

        Raises:
            EngineError: The prompt is no conversation, or the endpoint refuses, fails or breaks off.
        """
        info, started = self.info, time.monotonic()
        self._check(info, ids, request_id)
        payload = self._payload(messages_of(ids, engine=info.name), params)
        live = self._live[request_id] = _Live(asyncio.timeout(None))
        try:
            async with live.scope:
                reason = await self._ask(live, payload, params, on_delta)
        except TimeoutError:
            if not live.aborted:
                raise
            reason = "abort"
        finally:
            del self._live[request_id]
        return Generation(
            ids=tuple(live.ids),
            logprobs=(0.0,) * len(live.ids),
            finish_reason=reason,
            versions=(VersionSpan(version=0, start=0, end=len(live.ids)),) * bool(live.ids),
            prompt_tokens=len(ids),
            wall_s=time.monotonic() - started,
        )

    async def abort(self, request_id: str) -> None:
        """Close the connection and make the pending request return what it has."""
        live = self._live.get(request_id)
        if live is not None and not live.aborted and not live.scope.expired():
            live.aborted = True
            live.scope.reschedule(asyncio.get_running_loop().time())

    async def aclose(self) -> None:
        """Abort everything and close the connections."""
        self._closed = True
        for request_id in self._live:
            await self.abort(request_id)
        await self.client.aclose()

    def _check(self, info: EngineInfo, ids: Sequence[int], request_id: str) -> None:
        check_request(info, ids)
        if self._closed:
            raise EngineError("is closed", engine=info.name)
        if self.model is None:
            raise EngineError("was not started; await its start() first", engine=info.name)
        if request_id in self._live:
            raise EngineError(f"request id {request_id!r} is in use", engine=info.name)

    def _payload(self, messages: list[dict[str, str]], params: SamplingParams) -> bytes:
        """Write the request; the endpoint is not told of stop strings, because it would take them out of the text."""
        body: dict[str, Any] = {
            "model": self.model,
            "messages": messages,
            "stream": True,
            "max_tokens": params.max_tokens,
            "temperature": params.temperature,
        }
        if params.top_p < 1:
            body["top_p"] = params.top_p
        if params.top_k:
            body["top_k"] = params.top_k
        if params.temperature:
            body["seed"] = params.seed % (1 << 31)
        return msgspec.json.encode(body | dict(self.config.extra))

    async def _ask(self, live: _Live, payload: bytes, params: SamplingParams, on_delta: OnDelta | None) -> FinishReason:
        """Make attempts until one brings something; what came of a reply that breaks off later cannot be continued."""
        from tenacity import AsyncRetrying, retry_if_exception, stop_after_delay, wait_random_exponential

        retrying = AsyncRetrying(
            stop=stop_after_delay(self.config.give_up_s),
            wait=wait_random_exponential(multiplier=0.5, max=self.config.longest_wait_s),
            retry=retry_if_exception(lambda error: isinstance(error, EngineError) and error.retryable and not live.ids),
            reraise=True,
        )
        return await retrying(self._stream, live, payload, params, on_delta)

    async def _stream(
        self, live: _Live, payload: bytes, params: SamplingParams, on_delta: OnDelta | None
    ) -> FinishReason:
        """Read one reply to where it ends or is to end, and close the connection there."""
        events, stop = Events(engine=self.info.name), StopText(params.stop)
        async with self.client.stream("/chat/completions", payload, stall_s=self.config.stall_s) as reply:
            async for data in reply:
                for text in events.feed(data):
                    end = stop.cut(text)
                    new = self.tokenizer.encode(text[:end])[: params.max_tokens - len(live.ids)]
                    live.ids += new
                    if on_delta is not None:
                        on_delta(tuple(new))
                    if len(live.ids) >= params.max_tokens:
                        return "length"
                    if end is not None:
                        live.ids.append(END)
                        return "stop"
        if events.finish is None:
            raise BrokenReply("the reply ended before its message did", engine=self.info.name, retryable=True)
        if events.finish == "content_filter":
            raise EngineError("the endpoint's content filter ended the reply", engine=self.info.name)
        if events.finish == "length":
            return "length"
        live.ids.append(END)
        return "eos"


class _Card(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Card]


def _names(data: bytes, engine: str) -> list[str]:
    try:
        names = [card.id for card in msgspec.json.decode(data, type=_Models).data]
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise EngineError(f"/models is no list of models: {error}", engine=engine) from error
    if not names:
        raise EngineError("/models lists none", engine=engine)
    return names
