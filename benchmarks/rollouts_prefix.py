"""What placement does to prefix caches: groups that share demonstrations, on a pool of servers.

The servers are in this process, as placement knows nothing of HTTP: they share their speed among their requests, and
remember every prompt from the moment it is asked, as a server does that lets requests share a prefix in one batch.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from rollouts_work import SAMPLING, free_score
from workload import LIMITS, Workload

from icrl import Agent
from icrl.runtime.engines.pool import EnginePool
from icrl.runtime.engines.protocol import Engine, EngineInfo, EngineLoad, PauseMode
from icrl.runtime.rollout import Plan, Rollout, RolloutPolicy
from icrl.testing import Capacity
from icrl.testing.stub.capacity import Batch
from icrl.testing.stub.prefix import PrefixMemory
from icrl.trajectory import Generation
from icrl.types import Demonstration, SamplingParams, Step

FASTER = 10
SHOTS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefix:
    """Prefix-cache hits by placement."""

    servers: int = 2
    """Servers in the pool."""
    groups: int = 64
    """Groups; each has a prompt of its own behind one of the sets of demonstrations."""
    members: int = 8
    """Trajectories in a group."""
    sets: int = 8
    """Sets of demonstrations, which groups share."""
    concurrency: int = 128
    """Trajectories in flight."""


class CachingServer:
    """A server that says what is scripted and counts which tokens of its prompts it had seen before."""

    def __init__(self, work: Workload, name: str) -> None:
        vocabulary = work.tokenizer.vocab_size
        self.tokenizer = work.tokenizer
        self.info = EngineInfo(name=name, vocab_size=vocabulary, context_limit=32_768)
        self.asked: list[tuple[int, int, int]] = []
        self._work = work
        self._memory = PrefixMemory()
        self._batch = Batch(Capacity(tokens_per_s=FASTER * 40_000, tokens_per_s_per_request=FASTER * 400))

    async def generate(self, ids: Sequence[int], params: SamplingParams, *, request_id: str, **_: object) -> Generation:
        trajectory, _, turn = request_id.partition("/")
        group, member = map(int, trajectory.split("."))
        reply = self._work.episodes[group * self._work.members + member].replies[int(turn)]
        self.asked.append((int(turn), len(ids), self._memory.match(ids)))
        self._memory.add(ids)
        await self._batch.start(len(reply.ids)).reach(len(reply.ids))
        self._memory.add([*ids, *reply.ids])
        return reply.generation()

    async def probe(self) -> EngineLoad:
        return EngineLoad(running=self._batch.running, waiting=0, kv_usage=0.0)

    async def pause(self, mode: PauseMode = "in_place") -> None: ...

    async def update(self, weights: Iterable[tuple[str, Any]], version: int) -> None: ...

    async def resume(self) -> None: ...

    async def abort(self, request_id: str) -> None: ...

    async def aclose(self) -> None: ...


class AnyServer:
    """Sends every request to a server that is drawn for it, as a balancer does that knows nothing of prefixes."""

    def __init__(self, servers: Sequence[CachingServer]) -> None:
        self._servers, self._draw = servers, random.Random(0)
        self.info, self.tokenizer = servers[0].info, servers[0].tokenizer

    async def generate(self, *args: Any, **settings: Any) -> Generation:
        return await self._draw.choice(self._servers).generate(*args, **settings)

    async def abort(self, request_id: str) -> None: ...

    async def aclose(self) -> None: ...


def measure(options: Prefix) -> list[dict[str, Any]]:
    """Return a row for each placement, and one for a single server, which is as good as it gets."""
    work = Workload(trajectories=options.groups * options.members, members=options.members)
    rows = [asyncio.run(_placed(options, work, placing, options.servers)) for placing in ("prefix", "random")]
    return [*rows, asyncio.run(_placed(options, work, "one server", 1))]


async def _placed(options: Prefix, work: Workload, placing: str, count: int) -> dict[str, Any]:
    servers = [CachingServer(work, f"server {i}") for i in range(count)]
    engine: Engine = AnyServer(servers) if placing == "random" else EnginePool(servers)
    if isinstance(engine, EnginePool):
        await engine.start()
    agent = Agent(engine, tools=work.tools, dialect=work.dialect, limits=LIMITS, tokenizer=work.tokenizer)
    async with agent:
        policy = RolloutPolicy(feedback=False)
        rollout = Rollout(agent, score=free_score, sampling=SAMPLING, concurrency=options.concurrency, policy=policy)
        await rollout.collect(_plans(options, work))
    await engine.aclose()
    asked = [request for server in servers for request in server.asked]
    return {
        "placement": placing,
        "hit_rate": _rate(asked),
        "hit_rate_first": _rate([request for request in asked if request[0] == 0]),
        "hit_rate_later": _rate([request for request in asked if request[0] > 0]),
        "computed": sum(length - cached for _, length, cached in asked),
        "largest_share": max(len(server.asked) for server in servers) / len(asked),
    }


def _plans(options: Prefix, work: Workload) -> list[Plan]:
    draw = random.Random("demonstrations")
    sets = [[_demonstration(work, draw) for _ in range(SHOTS)] for _ in range(options.sets)]
    return [
        Plan(
            task=work.episodes[group * options.members].task,
            demonstrations=tuple(sets[group % options.sets]),
            members=options.members,
            id=f"{group}.",
        )
        for group in range(options.groups)
    ]


def _demonstration(work: Workload, draw: random.Random) -> Demonstration:
    """Make a worked example out of words of the workload."""
    episode = draw.choice(work.episodes)
    result = " ".join(draw.sample(episode.results[0].split(), k=min(80, len(episode.results[0].split()))))
    number = draw.randrange(10**6)
    step = Step(tool="search", arguments={"query": f"bridge {number}"}, result=result)
    return Demonstration(query=f"What is known of bridge {number}?", steps=(step,), answer=f"{number}")


def _rate(asked: Sequence[tuple[int, int, int]]) -> float:
    return sum(cached for *_, cached in asked) / sum(length for _, length, _ in asked)


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Show the rows."""
    shown = Table(title="prefix caches by placement")
    for column in ("placement", "prompt tokens cached", "first turns", "later turns", "computed", "busiest server"):
        shown.add_column(column, justify="right")
    for row in rows:
        rates = (f"{row[name]:.1%}" for name in ("hit_rate", "hit_rate_first", "hit_rate_later"))
        shown.add_row(row["placement"], *rates, f"{row['computed']:,}", f"{row['largest_share']:.0%}")
    return shown
