"""What an SGLang server says about its own work: its load, and its counters in Prometheus' text format.

Load comes from `/v1/loads`, which asks the schedulers now; the same numbers in `/metrics` are as old as the
scheduler's last report. Counters come from `/metrics`, which exists where the server was started with
`--enable-metrics`. `/health` is not asked: it makes the model sample a token, takes up to a second on a server that is
busy, and is not answered by one that is paused; `/ping` and `/v1/loads` say the same without all this.

A scheduler's counters are repeated by the ranks of one model (`--enable-metrics-for-all-schedulers`), of which the
largest is taken; those of replicas (data parallelism) are summed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from icrl.errors import EngineError
from icrl.imports import require
from icrl.runtime.engines.protocol import EngineLoad
from icrl.runtime.engines.sglang.client import Client
from icrl.runtime.engines.sglang.loads import read_load
from icrl.runtime.engines.sglang.router import RouterClient

if TYPE_CHECKING:
    from prometheus_client import Metric

__all__ = ["Reporting", "ServerCounters", "ServerUsage", "UsageReader", "read_counters"]

_LOG = logging.getLogger(__name__)
_COUNTERS = {
    "generated_tokens": "sglang:generation_tokens_total",
    "prompt_tokens": "sglang:prompt_tokens_total",
    "cached_tokens": "sglang:cached_tokens_total",
    "aborted": "sglang:num_aborted_requests_total",
    "retracted": "sglang:num_retracted_requests_total",
}
_REPEATED = frozenset({"tp_rank", "pp_rank", "moe_ep_rank"})
"""Labels of ranks that work on the same requests."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerCounters:
    """What a server counted since it started, over all its clients; a count that it never raised is 0."""

    generated_tokens: int
    """Tokens sampled."""
    prompt_tokens: int
    """Tokens of the requests' input."""
    cached_tokens: int
    """Of those, how many came from its cache."""
    aborted: int
    """Requests that were aborted."""
    retracted: int
    """Times that a running request lost its memory to others, and was computed again."""

    @property
    def cache_hit_rate(self) -> float | None:
        """Share of the input that came from the cache; `None` before the first request."""
        return self.cached_tokens / self.prompt_tokens if self.prompt_tokens else None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerUsage:
    """What one server said about its work."""

    address: str
    """Where it is."""
    load: EngineLoad | None
    """How busy it is; `None` where it did not answer."""
    counters: ServerCounters | None
    """What it counted; `None` where it did not answer, or was started without metrics."""


@runtime_checkable
class Reporting(Protocol):
    """An engine that can be asked about its work."""

    async def usage(self, *, timeout_s: float | None = None) -> tuple[ServerUsage, ...]:
        """Read load and counters of each of its servers."""
        ...


def read_counters(data: bytes, *, engine: str) -> ServerCounters:
    r"""Read the answer of `/metrics`.

    Args:
        data: The answer.
        engine: Whose it is, for errors.

    Raises:
        EngineError: It is not in Prometheus' format.
        MissingExtraError: prometheus-client is not installed.

    Example:
        >>> line = b'sglang:generation_tokens_total{model_name="m",is_streaming="%s"} %s\n'
        >>> read_counters(line % (b"true", b"3.0") + line % (b"false", b"4.0"), engine="e").generated_tokens
        7
    """
    parse = _parser()
    try:
        totals = _totals(data.decode(), parse)
        return ServerCounters(**{field: int(totals.get(name, 0.0)) for field, name in _COUNTERS.items()})
    except (ValueError, OverflowError) as error:
        raise EngineError(f"/metrics is not what an SGLang server says: {error}", engine=engine) from error


def _parser() -> Callable[[str], Iterable[Metric]]:
    require("prometheus_client", extra="serve")
    from prometheus_client.parser import text_string_to_metric_families

    return text_string_to_metric_families


def _totals(text: str, parse: Callable[[str], Iterable[Metric]]) -> dict[str, float]:
    # Of 500 samples some ten are of interest; the parser takes 13 ms for all of them, on the event loop.
    wanted = tuple(f"{name}{end}" for name in _COUNTERS.values() for end in ("{", " "))
    lines = [line for line in text.splitlines() if line.startswith(wanted)]
    replicas: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
    for family in parse("\n".join([*lines, ""])):
        for sample in family.samples:
            labels = frozenset(item for item in sample.labels.items() if item[0] not in _REPEATED)
            replicas[sample.name, labels] = max(sample.value, replicas.get((sample.name, labels), 0.0))
    totals: dict[str, float] = {}
    for (name, _), value in replicas.items():
        totals[name] = totals.get(name, 0.0) + value
    return totals


class UsageReader:
    """Asks servers about their work, and says once of each which was started without metrics."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    async def read(self, client: Client, *, timeout_s: float) -> tuple[ServerUsage, ...]:
        """Ask a server, or at the same time all behind a router; none makes it fail, or last longer than its deadline.

        Args:
            client: Leads there.
            timeout_s: Seconds for each question.

        Raises:
            MissingExtraError: prometheus-client is not installed.
        """
        await asyncio.to_thread(_parser)  # the first time it reads files
        servers: Sequence[Client] = client.servers if isinstance(client, RouterClient) else [client]
        return tuple(await asyncio.gather(*(self._of(server, timeout_s) for server in servers)))

    async def _of(self, client: Client, timeout_s: float) -> ServerUsage:
        load, counters = await asyncio.gather(self._load(client, timeout_s), self._counters(client, timeout_s))
        return ServerUsage(address=client.address, load=load, counters=counters)

    async def _load(self, client: Client, timeout_s: float) -> EngineLoad | None:
        try:
            return read_load(await client.get("/v1/loads", timeout_s=timeout_s), engine=client.address)
        except (EngineError, OSError):
            return None

    async def _counters(self, client: Client, timeout_s: float) -> ServerCounters | None:
        try:
            data = await client.get("/metrics", timeout_s=timeout_s)
        except (EngineError, OSError) as error:
            if getattr(error, "status", None) == 404:
                self._tell(client, "was started without --enable-metrics, so what it counts is not known")
            return None
        try:
            return read_counters(data, engine=client.address)
        except EngineError as error:
            self._tell(client, error.message)
            return None

    def _tell(self, client: Client, what: str) -> None:
        if client.address not in self._told:
            self._told.add(client.address)
            _LOG.warning("%s %s", client.address, what)
