"""The engines behind the server: which of them are used, and what they say about their work.

Servers are asked when somebody scrapes, at most every few seconds, all at the same time, and with a deadline: one that
hangs is shown as down, and keeps nobody waiting. Labels are addresses as the operator wrote them, without whatever
stands before an `@` or after the port; where nothing else tells two of them apart, they are numbered.
"""

from __future__ import annotations

import asyncio
import logging
import time
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from icrl.runtime.agent import Agent
from icrl.runtime.engines.member import Member
from icrl.runtime.engines.pool import EnginePool
from icrl.runtime.engines.sglang.usage import Reporting, ServerUsage
from icrl.serve.service import Service

__all__ = ["EngineWatch", "Engines", "answers", "engines_of"]

FRESH_S = 5.0
"""How long what servers said is repeated."""
ANSWER_S = 1.0
"""How long a server may take to say it."""
GIVE_UP_S = 2.0
"""How long a scrape waits, whatever happens."""
_LOG = logging.getLogger("icrl.serve")


@dataclass(frozen=True, slots=True)
class Engines:
    """How many servers are behind the agent."""

    used: int
    """Those that get requests."""
    all: int
    """Those that the operator named."""


def engines_of(service: Service) -> Engines | None:
    """Count the servers of a pool; `None` where the model runs in this process, or is not open."""
    engine = None if service.agent is None else service.agent.model.engine
    if not isinstance(engine, EnginePool):
        return None
    return Engines(used=sum(member.state == "used" for member in engine.members), all=len(engine.members))


def answers(service: Service) -> bool:
    """Say whether questions are answered: the service is ready, and not all engines are away."""
    engines = engines_of(service)
    return service.state == "ready" and (engines is None or engines.used > 0)


@dataclass(frozen=True, slots=True)
class _Shown:
    member: Member | None
    usage: ServerUsage

    def gauges(self) -> dict[str, float | None]:
        load, counters = self.usage.load, self.usage.counters
        used = self.member is None or self.member.state == "used"
        values: dict[str, float | None] = {"up": load is not None, "used": used}
        if load is not None:
            values |= {"running": load.running, "waiting": load.waiting, "kv_usage": load.kv_usage}
        if counters is not None:
            values["cache_hit_rate"] = counters.cache_hit_rate
        return values


_GAUGES = (
    ("up", "Whether the engine answers."),
    ("used", "Whether the engine gets requests."),
    ("running", "Requests that the engine samples, of all its clients."),
    ("waiting", "Requests in the engine's own queue."),
    ("kv_usage", "Share of the engine's memory for keys and values that is taken."),
    ("cache_hit_rate", "Share of all input tokens since the engine started that came from its cache."),
)
_COUNTERS = (
    ("generated_tokens", "Tokens that the engine sampled, for all its clients.", "generated_tokens"),
    ("prompt_tokens", "Tokens that the engine was given.", "prompt_tokens"),
    ("cached_tokens", "Of those, tokens that came from the engine's cache.", "cached_tokens"),
    ("aborted_requests", "Requests that were aborted at the engine.", "aborted"),
    ("retracted_requests", "Times that a running request lost its memory to others.", "retracted"),
)


class EngineWatch(Collector):
    """Shows what engines say about their work.

    Args:
        service: Whose engines.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._shown: dict[str, _Shown] = {}
        self._asked_at = -FRESH_S
        self._asked_of: weakref.ref[Agent] | None = None
        self._asking: asyncio.Task[None] | None = None

    async def refresh(self) -> None:
        """Ask the engines, unless that was done a moment ago; never fails, and takes at most `GIVE_UP_S`."""
        agent = self._service.agent
        if agent is None:
            self._shown = {}
            return
        same = self._asked_of is not None and self._asked_of() is agent
        if same and time.monotonic() - self._asked_at < FRESH_S:
            return
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask(agent))
        await asyncio.wait((self._asking,), timeout=GIVE_UP_S)

    async def aclose(self) -> None:
        """Ask no more."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait((self._asking,))

    def collect(self) -> Iterator[Metric]:
        """Repeat what the engines said."""
        gauges = {engine: shown.gauges() for engine, shown in self._shown.items()}
        for name, what in _GAUGES:
            gauge = GaugeMetricFamily(f"icrl_engine_{name}", what, labels=["engine"])
            for engine, values in gauges.items():
                if (value := values.get(name)) is not None:
                    gauge.add_metric([engine], value)
            yield gauge
        for name, what, field in _COUNTERS:
            counter = CounterMetricFamily(f"icrl_engine_{name}", what, labels=["engine"])
            for engine, shown in self._shown.items():
                if shown.usage.counters is not None:
                    counter.add_metric([engine], getattr(shown.usage.counters, field))
            yield counter

    async def _ask(self, agent: Agent) -> None:
        servers: list[tuple[Reporting, Member | None]] = []
        said: list[tuple[ServerUsage, ...]] = []
        try:
            servers = list(_servers(agent))
            said = await asyncio.gather(*(server.usage(timeout_s=ANSWER_S) for server, _ in servers))
        except Exception:  # what only shows may not break what is shown
            _LOG.exception("the engines could not be asked about their work")
            servers = []
        shown = {
            usage.address: _Shown(member, usage)
            for (_, member), usages in zip(servers, said, strict=True)
            for usage in usages
        }
        self._shown = dict(zip(_labels(shown), shown.values(), strict=True))
        self._asked_at, self._asked_of = time.monotonic(), weakref.ref(agent)


def _servers(agent: Agent) -> Iterator[tuple[Reporting, Member | None]]:
    """Yield the servers behind an agent that can be asked, with what their pool knows about them."""
    engine = agent.model.engine
    if isinstance(engine, EnginePool):
        for member in engine.members:
            if isinstance(member.server, Reporting):
                yield member.server, member
    elif isinstance(engine, Reporting):
        yield engine, None


def _labels(addresses: Iterable[str]) -> list[str]:
    """Name servers for everybody, each differently.

    Example:
        >>> _labels(["http://gate/a", "http://gate/b", "http://10.0.0.1:30000"])
        ['http://gate', 'http://gate#2', 'http://10.0.0.1:30000']
    """
    seen: Counter[str] = Counter()
    labels = []
    for label in map(_label, addresses):
        seen[label] += 1
        labels.append(label if seen[label] == 1 else f"{label}#{seen[label]}")
    return labels


def _label(address: str) -> str:
    """Name a server for everybody.

    Example:
        >>> _label("http://me:secret@10.0.0.1:30000"), _label("http://10.0.0.1:30000")
        ('http://10.0.0.1:30000', 'http://10.0.0.1:30000')
    """
    parts = urlsplit(address)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
