"""How long a batch of trajectories takes with heavy-tailed tools, against a client that costs nothing.

All contestants have the same engine, in a process of its own, whose requests share its speed; the same trajectories,
token for token; and tools that take the same time in the same call. They differ in when they ask.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from rich.table import Table
from rollouts_ideal import bound_s, ideal_s, lockstep_s
from rollouts_stub import StubProcess, connected
from rollouts_trl import TrlLoop, prepare
from rollouts_work import MEMBERS, SAMPLING, Latencies, Scene, SlowTool, free_score

from icrl.runtime.engines.protocol import Engine, EngineInfo
from icrl.runtime.rollout import Rollout, RolloutPolicy
from icrl.runtime.tools.tool import Tool
from icrl.trajectory import Generation

Contestant = Literal["icrl", "lock-step", "trl"]
WARM_UP = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Makespan:
    """Makespan over the ideal with heavy-tailed tools."""

    trajectories: tuple[int, ...] = (64, 512, 4096)
    """Batches, one after the other."""
    tools: tuple[Latencies, ...] = ("tail", "lognorm")
    """Distributions of tool latencies: lognormal(0.3 s, 0.5) with 1 % thirty times as long; lognormal(0.5 s, 1.0)."""
    contestants: tuple[Contestant, ...] = ("icrl", "lock-step", "trl")
    """Who runs them: icrl, icrl with a barrier after every turn, TRL's synchronous loop."""
    trl_up_to: int = 64
    """Largest batch that TRL gets, as it waits for one tool after the other."""
    repeats: int = 1
    """Runs of icrl; the others run once."""
    scale: float = 1.0
    """Shorter than 1 makes everything faster, tools and engine alike; the client's share of the time grows with it."""


def measure(options: Makespan) -> list[dict[str, Any]]:
    """Return a row for every batch, distribution and contestant; TRL's last, as its imports weigh on all others."""
    ours: list[Contestant] = [who for who in options.contestants if who != "trl"]
    rows = [row for trajectories in options.trajectories for row in _measure(options, trajectories, ours)]
    if "trl" in options.contestants:
        prepare()
        small = [trajectories for trajectories in options.trajectories if trajectories <= options.trl_up_to]
        rows += [row for trajectories in small for row in _measure(options, trajectories, ["trl"])]
    return rows


def _measure(options: Makespan, trajectories: int, contestants: Sequence[Contestant]) -> Iterator[dict[str, Any]]:
    with StubProcess(trajectories=trajectories, scale=options.scale, members=MEMBERS) as stub:
        for kind in options.tools:
            scene = Scene(trajectories, kind, scale=options.scale, members=MEMBERS)
            for contestant in contestants:
                for repeat in range(options.repeats if contestant == "icrl" else 1):
                    found = asyncio.run(_run(CONTESTANTS[contestant], stub.address, scene))
                    row = {"contestant": contestant, "tools": kind, "repeat": repeat, **found}
                    yield row | _ideals(scene, found["wall_s"])


def _ideals(scene: Scene, wall_s: float) -> dict[str, float]:
    ideal = ideal_s(scene.courses, scene.capacity)
    return {
        "ideal_s": ideal,
        "ratio": wall_s / ideal,
        "bound_s": bound_s(scene.courses, scene.capacity),
        "ideal_lockstep_s": lockstep_s(scene.courses, scene.capacity),
    }


async def _run(contestant: Callable[[Engine, Scene], Awaitable[int]], address: str, scene: Scene) -> dict[str, Any]:
    """Let a contestant run the scene once; warm means that everything is imported and compiled."""
    async with connected(address, scene) as engine:
        async with scene.agent(engine, scene.work.tools) as agent:
            await Rollout(agent, score=free_score, sampling=SAMPLING).collect(scene.plans()[:WARM_UP])
        started, spent = time.monotonic(), time.process_time()
        exact = await contestant(engine, scene)
        wall_s, cpu_s = time.monotonic() - started, time.process_time() - spent
    turns = sum(len(course.tokens) for course in scene.courses)
    return {
        "trajectories": len(scene.courses),
        "wall_s": wall_s,
        "cpu_us_per_turn": cpu_s / turns * 1e6,
        "exact": exact,
        "per_s": len(scene.courses) / wall_s,
    }


async def _icrl(engine: Engine, scene: Scene, tools: Sequence[Tool] = ()) -> int:
    policy = RolloutPolicy(feedback=False)
    async with scene.agent(engine, tools or scene.tools()) as agent:
        rollout = Rollout(agent, score=free_score, sampling=SAMPLING, concurrency=len(scene.courses), policy=policy)
        groups = await rollout.collect(scene.plans())
    return scene.exact(groups)


async def _lock_step(engine: Engine, scene: Scene) -> int:
    barrier = asyncio.Barrier(len(scene.courses))
    tools = [BarrierTool(tool.inner, tool.latencies_s, barrier=barrier) for tool in scene.tools()]
    return await _icrl(BarrierEngine(engine, barrier), scene, tools)


async def _trl(engine: Engine, scene: Scene) -> int:
    loop = TrlLoop(scene, engine, asyncio.get_running_loop())
    responses = await asyncio.to_thread(loop.run)
    last = [episode.replies[-1].ids for episode in scene.work.episodes]
    endings = {tuple(ids[-24:]) for ids in responses}
    return sum(tuple(ids[-24:]) in endings for ids in last)


CONTESTANTS: dict[Contestant, Callable[[Engine, Scene], Awaitable[int]]] = {
    "icrl": _icrl,
    "lock-step": _lock_step,
    "trl": _trl,
}


class BarrierEngine:
    """An engine that answers when it has answered everybody."""

    def __init__(self, inner: Engine, barrier: asyncio.Barrier) -> None:
        self._inner, self._barrier = inner, barrier

    @property
    def info(self) -> EngineInfo:
        return self._inner.info

    async def generate(self, *args: Any, **settings: Any) -> Generation:
        generation = await self._inner.generate(*args, **settings)
        await self._barrier.wait()
        return generation

    async def abort(self, request_id: str) -> None:
        await self._inner.abort(request_id)

    async def aclose(self) -> None: ...


@dataclass(slots=True)
class BarrierTool(SlowTool):
    """A tool that answers when it has answered everybody."""

    barrier: asyncio.Barrier = field(kw_only=True)

    async def __call__(self, arguments: Mapping[str, Any]) -> str:
        text = await SlowTool.__call__(self, arguments)
        await self.barrier.wait()
        return text


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Show the rows."""
    shown = Table(title="makespan with heavy-tailed tools, against a client that costs nothing")
    columns = ("tools", "N", "who", "seconds", "ideal", "÷ ideal", "trajectories/s", "CPU µs/turn", "exact")
    for column in columns:
        shown.add_column(column, justify="left" if column in ("tools", "who") else "right")
    for row in rows:
        shown.add_row(
            row["tools"],
            str(row["trajectories"]),
            row["contestant"],
            f"{row['wall_s']:.1f}",
            f"{row['ideal_s']:.1f}",
            f"{row['ratio']:.3f}",
            f"{row['per_s']:.1f}",
            f"{row['cpu_us_per_turn']:.0f}",
            f"{row['exact']}/{row['trajectories']}",
        )
    return shown


def draw_plot(rows: Sequence[Mapping[str, Any]], axes: Any) -> None:
    """Draw the ratio of every contestant, a group of bars a batch."""
    batches = list(dict.fromkeys((row["tools"], row["trajectories"]) for row in rows))
    who = list(dict.fromkeys(row["contestant"] for row in rows))
    for offset, contestant in enumerate(who):
        best = {
            (row["tools"], row["trajectories"]): row["ratio"]
            for row in sorted(rows, key=lambda row: -row["ratio"])
            if row["contestant"] == contestant
        }
        places = [i + 0.27 * (offset - 1) for i, batch in enumerate(batches) if batch in best]
        bars = axes.bar(places, [best[batch] for batch in batches if batch in best], width=0.25, label=contestant)
        axes.bar_label(bars, fmt="%.2f", fontsize=6)
    axes.set_yscale("log")
    axes.axhline(1.0, color="black", linewidth=0.8)
    axes.set_xticks(range(len(batches)), [f"{kind}\n{number}" for kind, number in batches], fontsize=7)
    axes.set(ylabel="makespan ÷ ideal", title="heavy-tailed tools")
    axes.legend(fontsize=7)
