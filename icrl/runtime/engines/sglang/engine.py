"""An SGLang server as an engine: ids in, ids with log-probabilities and weight versions out.

A request costs the client about 155 µs of CPU (64 in flight, 900 ids of history, 300 new, 160 sampled; 225 with 7,000
ids of history), of which some 20 are HTTP. Streamed in events of 256 tokens it costs 40 more, in
events of 64 nearly twice as much, in events of 4 eight times as much: so replies are streamed where they may be long,
or where somebody watches. `docs/sglang.md` has the table.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from icrl.errors import EngineError
from icrl.runtime.engines.adapter import AdapterMode
from icrl.runtime.engines.meter import Meter
from icrl.runtime.engines.protocol import FOREIGN, EngineInfo, EngineLoad, LostRequest, OnDelta, PauseMode
from icrl.runtime.engines.sglang.aborts import Aborts
from icrl.runtime.engines.sglang.adapters import ServerAdapters
from icrl.runtime.engines.sglang.client import BrokenReply, Client
from icrl.runtime.engines.sglang.config import SGLangConfig, TransportName
from icrl.runtime.engines.sglang.connect import read_facts
from icrl.runtime.engines.sglang.facts import ServerFacts
from icrl.runtime.engines.sglang.live import Live, unique_rid
from icrl.runtime.engines.sglang.loads import read_load
from icrl.runtime.engines.sglang.prompts import Prompts
from icrl.runtime.engines.sglang.sampling import body
from icrl.runtime.engines.sglang.streaming import Arrived
from icrl.runtime.engines.sglang.usage import ServerUsage, UsageReader
from icrl.runtime.engines.sglang.versions import MIXED, UNTOUCHED, Versions
from icrl.runtime.engines.sglang.weights import INTERRUPTED, ServerWeights
from icrl.runtime.engines.sglang.wire import check_tokens, decode, finish_reason, spans
from icrl.tokenizer import Tokenizer
from icrl.trajectory import Generation
from icrl.types import SamplingParams

__all__ = ["SGLangEngine"]

CAPABILITIES = frozenset({"logprobs", "abort", "prefix_cache", "weights", "deltas"})


class SGLangEngine:
    """A `Server`: one SGLang server, spoken to in its native protocol.

    It retries nothing: a request that is lost with its server says so (`LostRequest`), with what had arrived of it.

    Args:
        address: `http://host:port`, or a client that leads there.
        api_key: Sent as a bearer token.
        tokenizer: The model's; agents use it, and it tells the vocabulary's size where the model's files are not here.
        transport: How weights travel.
        adapters: Whether updates bring whole weights, or a LoRA adapter each (`lora`), which requests then name.
        pause_mode: What becomes of running requests while weights change.
        flush: Drop cached keys and values at an update; without this, later requests reuse stale ones.
        verify: Compare checksums after an update.
        directory: Where weights are written for the `disk` transport.
        config: Deadlines and streaming.

    Example:
        >>> engine = SGLangEngine("http://127.0.0.1:30000")
        >>> engine.info
        Traceback (most recent call last):
        icrl.errors.EngineError: http://127.0.0.1:30000: not connected; call start() first
    """

    def __init__(
        self,
        address: str | Client,
        *,
        api_key: str | None = None,
        tokenizer: Tokenizer | None = None,
        transport: TransportName = "disk",
        adapters: AdapterMode = "merged",
        pause_mode: PauseMode = "in_place",
        flush: bool = True,
        verify: bool = False,
        directory: Path | None = None,
        config: SGLangConfig | None = None,
    ) -> None:
        self.config = config or SGLangConfig()
        self.tokenizer = tokenizer
        self.client = address if isinstance(address, Client) else Client(address, api_key=api_key)
        self.meter = Meter()
        """Counts what is asked here, and for how long something is."""
        self._usage = UsageReader()
        self._sync: Mapping[str, Any] = {
            "transport": transport,
            "pause_mode": pause_mode,
            "flush": flush,
            "verify": verify,
            "directory": directory,
        }
        self._aborts = Aborts(self._end_there, patience_s=self.config.abort_s)
        self._prompts = Prompts()
        self._live: dict[str, Live] = {}
        self._paused_over: tuple[Live, ...] = ()
        self._version_at_pause = 0
        self._closed = False
        self._connection = ""
        self._facts: ServerFacts | None = None
        self._weights: ServerWeights | None = None
        self._adapters = ServerAdapters(self.client, directory=directory) if adapters == "lora" else None
        self._versions = Versions(UNTOUCHED)
        self._intrusion: str | None = None
        self._info: EngineInfo | None = None

    @property
    def facts(self) -> ServerFacts:
        """What the server said at connect.

        Raises:
            EngineError: `start` was not called.
        """
        if self._facts is None:
            raise EngineError("not connected; call start() first", engine=self.client.address)
        return self._facts

    @property
    def info(self) -> EngineInfo:
        """What the engine can do.

        Raises:
            EngineError: `start` was not called.
        """
        if self._info is None:
            raise EngineError("not connected; call start() first", engine=self.client.address)
        sink = self._adapters or self._weights
        if sink is not None and self._info.weight_version != sink.version:
            self._info = replace(self._info, weight_version=sink.version)
        return self._info

    async def start(self) -> None:
        """Connect, or connect again to a server that was restarted.

        Raises:
            EngineError: It cannot be reached, or it is no SGLang server of 0.5.19 or later.
            ConfigError: The vocabulary's size cannot be known, or it takes no adapters where they are to be sent.
        """
        facts = await read_facts(self.client, tokenizer=self.tokenizer, timeout_s=self.config.answer_s)
        if self._adapters is not None:
            await self._adapters.connect(facts)
        if self._facts is None:
            self._versions = Versions(facts.weight_version)
        # Keys and values of older weights may be cached there under names that this connection would use again.
        updated = self._facts is not None or facts.weight_version != UNTOUCHED
        self._connection = secrets.token_hex(4) if updated and self._sync["flush"] else ""
        self._prompts = Prompts()  # what was checked against the bounds of a server that is no more
        self._facts = facts
        await self._reconsider(facts.weight_version)
        self.meter.resume()
        self._info = EngineInfo(
            name=facts.address,
            vocab_size=facts.vocab_size,
            context_limit=facts.context_limit,
            weight_version=self._versions.found(facts.weight_version),
            capabilities=CAPABILITIES,
        )

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
        """Sample a continuation of `ids`; see `Engine.generate`.

        Requests of a session are spelled incrementally, and a shared prefix once; the server finds both by itself.

        Raises:
            LostRequest: The reply broke off, nothing came for `SGLangConfig.stall_s`, or somebody else gave the server
                weights: then some of the partial's versions are `FOREIGN`, and its tokens should not be used.
            EngineError: The request is out of bounds, its id is in use, the server refuses or cannot be reached
                (`retryable` says whether to try again), or its reply is malformed.
        """
        info = self.info
        self._admit(request_id)
        digits = self._prompts.spell(ids, info, session=session, shared_prefix=shared_prefix)
        room = info.context_limit - len(ids)
        chunk_tokens = self.config.events_of(min(params.max_tokens, room), watched=on_delta is not None)
        adapter = None if self._adapters is None else self._adapters.take()
        live = Live(
            rid=unique_rid(request_id), prompt_tokens=len(ids), arrived=Arrived(engine=info.name), adapter=adapter
        )
        self._live[request_id] = live
        result: Generation | None = None
        self.meter.enter()
        try:
            payload = body(
                digits,
                params,
                rid=live.rid,
                room=room,
                chunk_tokens=chunk_tokens,
                deterministic=self.facts.deterministic,
                cache_key=self._cache_key,
                adapter=None if adapter is None else adapter.name,
            )
            result = await self._converse(live, payload, params.stop, on_delta, streamed=chunk_tokens is not None)
            if (why := self._intruder(live, result)) is not None:
                raise LostRequest(why, engine=info.name, partial=result)
            return result
        except LostRequest as lost:
            result = lost.partial
            raise
        finally:
            self.meter.leave(result)
            if self._adapters is not None and adapter is not None:
                self._adapters.leave(adapter)
            live.done.set()
            del self._live[request_id]

    async def abort(self, request_id: str) -> None:
        """Make the pending request return what it has, whether or not it has reached the server."""
        live = self._live.get(request_id)
        if live is not None:
            self._aborts.end(live)

    async def aclose(self) -> None:
        """Abort everything, refuse further requests, and close the connections; the server goes on."""
        self._closed = True
        for live in self._live.values():
            self._aborts.end(live)
        await self._aborts.finish()
        await self._close_weights()
        if self._adapters is not None:
            await self._adapters.aclose()
        await self.client.aclose()

    async def probe(self) -> EngineLoad:
        """Say how busy the server is.

        Raises:
            EngineError: It does not serve: unreachable, starting, or shutting down; or it lost its adapter.
        """
        if self._adapters is not None:
            self._adapters.check()
        await self.client.get("/ping", timeout_s=self.config.answer_s)
        return read_load(await self.client.get("/v1/loads", timeout_s=self.config.answer_s), engine=self.client.address)

    async def usage(self, *, timeout_s: float | None = None) -> tuple[ServerUsage, ...]:
        """Read load and counters of the server, or of each that is behind a router; one that is away has none.

        Args:
            timeout_s: Seconds for each question; `SGLangConfig.answer_s` if not given.

        Raises:
            MissingExtraError: prometheus-client is not installed.
        """
        return await self._usage.read(self.client, timeout_s=timeout_s or self.config.answer_s)

    async def pause(self, mode: PauseMode | None = None) -> None:
        """Stop sampling, in the mode given at construction if not told; see `WeightSink.pause`."""
        await (await self._sink()).pause(mode)
        self._paused_over, self._version_at_pause = tuple(self._live.values()), self.info.weight_version
        self.meter.pause()

    async def update(self, weights: Iterable[tuple[str, Any]], version: int) -> None:
        """Replace the server's weights; see `WeightSink.update`.

        Raises:
            WeightSyncError: The server may hold other weights than the version says.
        """
        sink = await self._sink()
        try:
            await sink.update(weights, version)
        finally:
            if isinstance(sink, ServerWeights) and not sink.cache_dropped:
                newer = sink.version if sink.fault is None else FOREIGN
                for live in self._paused_over:
                    live.crossings[self._version_at_pause] = newer

    async def resume(self) -> None:
        """Sample again."""
        await (await self._sink()).resume()
        self._paused_over = ()
        self.meter.resume()

    def weight_name(self, version: int) -> str:
        """Return what the server is to call weights that are sent from here."""
        return self._versions.name(version)

    async def _end_there(self, rid: str) -> None:
        await self.client.post("/abort_request", {"rid": rid}, timeout_s=self.config.abort_s)

    def _admit(self, request_id: str) -> None:
        if self._closed:
            raise EngineError("is closed", engine=self.client.address)
        if self._weights is not None and self._weights.fault is not None:
            raise EngineError(f"its weights are unknown: {self._weights.fault}", engine=self.client.address)
        if request_id in self._live:
            raise EngineError(f"request id {request_id!r} is in use", engine=self.client.address)

    @property
    def _cache_key(self) -> str | None:
        """What requests send so that they find no keys and values of other weights; nothing on an untouched server."""
        key = None if self._weights is None else self._weights.cache_key
        return f"{self._connection}/{key or ''}" if self._connection else key

    async def _sink(self) -> ServerWeights | ServerAdapters:
        """Open the way for weights at first use; it reads the model's files, which agents that only run do not need."""
        if self._adapters is not None:
            return self._adapters
        if self._weights is None:
            self._weights = await self._open_weights()
        return self._weights

    async def _open_weights(self) -> ServerWeights:
        return await asyncio.to_thread(ServerWeights, self.client, self.facts, versions=self._versions, **self._sync)

    async def _reconsider(self, name: str) -> None:
        """Sample nothing until weights were sent, if it is not known what the server holds, or if others sent that.

        Connecting again tells nothing about what a failed update from here has left there.
        """
        fault = None if self._weights is None or self._weights.fault == self._intrusion else self._weights.fault
        await self._close_weights()
        self._intrusion = INTERRUPTED if name == MIXED else None
        if self._versions.intruded(name):
            self._intrusion = f"somebody else gave it those that it calls {name!r}"
        if self._adapters is None and (fault or self._intrusion):
            self._weights = await self._open_weights()
            self._weights.fault = fault or self._intrusion

    async def _close_weights(self) -> None:
        weights, self._weights = self._weights, None
        if weights is not None:
            await weights.aclose()

    async def _converse(
        self, live: Live, payload: bytes, stop: Sequence[str], on_delta: OnDelta | None, *, streamed: bool
    ) -> Generation:
        """Send a request and return what came of it, whatever happens on the way."""
        try:
            async with live.scope:
                await (self._events(live, payload, on_delta) if streamed else self._whole(live, payload))
            return self._result(live, stop)
        except EngineError as error:
            broken = isinstance(error, BrokenReply)
            if broken or live.arrived.ids:
                self._aborts.withdraw(live.rid)
            if live.aborted:
                return live.partial(self._versions_of(live))
            resumable = error.retryable and bool(live.arrived.ids)
            if not broken and not resumable and not self._lost_adapter(live, error):
                raise
            partial_ = live.partial(self._versions_of(live))
            status = error.status if broken else None
            why = self._intruder(live, partial_) or error.message
            raise LostRequest(why, engine=error.engine, partial=partial_, status=status) from error
        except TimeoutError:
            if not live.aborted:
                raise
            return live.partial(self._versions_of(live))
        except BaseException:
            self._aborts.withdraw(live.rid)
            raise

    async def _whole(self, live: Live, payload: bytes) -> None:
        data = await self.client.post("/generate", payload, timeout_s=self.config.stall_s)
        live.arrived.take(decode(data, engine=self.client.address))

    async def _events(self, live: Live, payload: bytes, on_delta: OnDelta | None) -> None:
        async with self.client.stream("/generate", payload, stall_s=self.config.stall_s) as reply:
            async for piece in reply:
                new = live.arrived.feed(piece)
                if on_delta is not None and new:
                    on_delta(new)
        if live.arrived.finish is None:
            raise BrokenReply("the reply ended before the generation did", engine=self.client.address, retryable=True)

    def _result(self, live: Live, stop: Sequence[str]) -> Generation:
        arrived, engine = live.arrived, self.client.address
        reason = finish_reason(arrived.finish, stop, engine=engine)
        check_tokens(arrived.ids, self.facts.vocab_size, engine=engine)
        return live.generation(reason, spans(arrived.meta, len(arrived.ids), self._versions_of(live), engine=engine))

    def _intruder(self, live: Live, result: Generation) -> str | None:
        """Say whose weights sampled a result, or some of it, if they were not sent from here."""
        if all(span.version != FOREIGN for span in result.versions):
            return None
        versions, fault = self._versions_of(live), None if self._weights is None else self._weights.fault
        name = next((name for name in live.arrived.names if versions.number(name) == FOREIGN), MIXED)
        known = {UNTOUCHED: "though it has taken others from here: it was restarted", MIXED: fault or INTERRUPTED}
        why = known.get(name, "which were not sent from here: somebody else gives it weights")
        return f"samples under weights called {name!r}, {why}"

    def _versions_of(self, live: Live) -> Versions:
        """Return what translates the names of weights in a reply: with an adapter, all of it is the adapter's."""
        return self._versions if live.adapter is None else live.adapter.versions

    def _lost_adapter(self, live: Live, error: EngineError) -> bool:
        return self._adapters is not None and live.adapter is not None and self._adapters.lost(live.adapter, error)
