"""Client CPU per turn, and memory per trajectory in flight: the whole loop with an engine that answers at once."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import resource
import statistics
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table
from workload import LIMITS, TURNS, Workload, large_tokenizer

from icrl import Agent
from icrl.config import load
from icrl.runtime.engines.protocol import Engine, EngineInfo
from icrl.runtime.tools.tool import Tool, ToolPolicy, ToolSpec
from icrl.tokenizer import ChatTokenizer
from icrl.trajectory import Generation, Trajectory
from icrl.types import SamplingParams

SAMPLING = SamplingParams(max_tokens=2048)


@dataclass(frozen=True, slots=True, kw_only=True)
class Overhead:
    """CPU microseconds of the client per turn, with an instant scripted engine and instant tools."""

    trajectories: int = 256
    """Trajectories in flight at once; three turns each."""
    repeats: int = 5
    """Measurements; the median is printed."""
    prompt: int = 508
    """Tokens of a prompt."""
    dialects: tuple[str, ...] = ("hermes", "xml")
    """Dialects to measure."""
    encoders: tuple[Literal["huggingface", "fast"], ...] = ("huggingface", "fast")
    """Encoders to measure; the fast one needs `icrl[fast]`."""
    held: int = 4096
    """Trajectories to hold in a tool call, for the memory of each; 0 leaves it out."""
    json: bool = False
    """Print JSON instead of a table."""


def main(argv: Sequence[str]) -> None:
    options = load(Overhead, argv, prog="benchmarks/run.py overhead", description=str(Overhead.__doc__))
    # First, as memory that an earlier measurement left free would be filled without being seen.
    held = held_kib(options.held, options.prompt, large_tokenizer()) if options.held else None
    cases: dict[str, Mapping[str, Any]] = {}
    for encoder in options.encoders:
        tokenizer = large_tokenizer(encoder=encoder)
        for dialect in options.dialects:
            cases[f"{dialect}, {encoder}"] = asyncio.run(measure(options, tokenizer, dialect))
    if options.json:
        print(json.dumps({"trajectories": options.trajectories, "prompt": options.prompt, "cpu": cases, "held": held}))
        return
    table = Table(title=f"client CPU per turn\n{options.trajectories} trajectories of {TURNS} turns")
    for column in ("dialect, encoder", "median µs", "all µs"):
        table.add_column(column)
    for case, found in cases.items():
        table.add_row(case, f"{found['median_us']:.0f}", " ".join(f"{s:.0f}" for s in found["samples_us"]))
    console = Console()
    console.print(table)
    if held is not None:
        console.print(f"{held:.1f} KiB per trajectory with {options.held} of them in a tool call")


async def measure(options: Overhead, tokenizer: ChatTokenizer, dialect: str) -> Mapping[str, Any]:
    """Return CPU µs per turn: rendering one prompt a group, all turns, the trajectories at the end."""
    samples = []
    for repeat in range(options.repeats):
        workload = Workload(
            trajectories=options.trajectories,
            prompt_tokens=options.prompt,
            dialect=dialect,
            seed=repeat,
            tokenizer=tokenizer,
        )
        engine = InstantEngine(workload)
        async with open_agent(engine, workload, workload.tools) as agent:
            await asyncio.gather(*(run(agent, workload, i) for i in range(16)))  # warm-up
            gc.collect()
            started = time.process_time()
            trajectories = await asyncio.gather(*members(agent, workload))
            spent = time.process_time() - started
        check(workload, trajectories)
        samples.append(spent / (options.trajectories * TURNS) * 1e6)
    return {"median_us": statistics.median(samples), "samples_us": samples}


def open_agent(engine: Engine, workload: Workload, tools: Sequence[Tool]) -> Agent:
    return Agent(engine, tools=tools, dialect=workload.dialect, instruction=workload.instruction, limits=LIMITS)


def members(agent: Agent, workload: Workload) -> list[Awaitable[Trajectory]]:
    """Prepare all runs; those of one group share their rendered prompt, as in training."""
    runs: list[Awaitable[Trajectory]] = []
    for first in range(0, len(workload.episodes), workload.members):
        prompt = agent.model.prompt(workload.episodes[first].task.messages, ())
        group = range(first, min(first + workload.members, len(workload.episodes)))
        runs += [run(agent, workload, number, prompt) for number in group]
    return runs


def run(agent: Agent, workload: Workload, number: int, prompt: Any = None) -> Awaitable[Trajectory]:
    task = workload.episodes[number].task
    prompt = prompt or agent.model.prompt(task.messages, ())
    return agent.prepare(task, prompt, shots=0, sampling=SAMPLING, trajectory_id=str(number)).execute()


def check(workload: Workload, trajectories: Sequence[Trajectory]) -> None:
    """Compare what was recorded with the script, exactly."""
    for episode, trajectory in zip(workload.episodes, trajectories, strict=True):
        sampled = [segment for segment in trajectory.segments if segment.source == "policy"]
        assert [segment.ids for segment in sampled] == [tuple(reply.ids) for reply in episode.replies]
        assert [segment.logprobs for segment in sampled] == [tuple(reply.logprobs) for reply in episode.replies]
        assert [result.text for result in trajectory.results] == list(episode.results)


class InstantEngine:
    """Hands out prepared generations and costs next to nothing itself.

    Args:
        workload: The script.
        prepared: Whether the generations exist beforehand; otherwise they are new objects, as an answer decoded from
            a socket is.
    """

    def __init__(self, workload: Workload, *, prepared: bool = True) -> None:
        self.tokenizer = workload.tokenizer
        self.info = EngineInfo(name="instant", vocab_size=self.tokenizer.vocab_size, context_limit=1_000_000)
        self._episodes = workload.episodes
        self._prepared = [[r.generation() for r in e.replies] for e in self._episodes] if prepared else None

    async def generate(self, ids: Sequence[int], params: SamplingParams, *, request_id: str, **_: object) -> Generation:
        number, _, turn = request_id.partition("/")
        if self._prepared is None:
            return self._episodes[int(number)].replies[int(turn)].generation()
        return self._prepared[int(number)][int(turn)]

    async def abort(self, request_id: str) -> None: ...

    async def aclose(self) -> None: ...


# ---- memory


def held_kib(trajectories: int, prompt_tokens: int, tokenizer: ChatTokenizer) -> float:
    """Return KiB of resident memory per trajectory, with all of them waiting in their second tool call."""
    workload = Workload(trajectories=trajectories, prompt_tokens=prompt_tokens, members=1, tokenizer=tokenizer)
    return asyncio.run(_hold(workload))


async def _hold(workload: Workload) -> float:
    door = Door(workload.tools, len(workload.episodes))
    engine = InstantEngine(workload, prepared=False)
    async with open_agent(engine, workload, door.tools) as agent:
        gc.collect()
        before = resident_bytes()
        running = [asyncio.ensure_future(run(agent, workload, i)) for i in range(len(workload.episodes))]
        await door.full.wait()
        gc.collect()
        grown = resident_bytes() - before
        door.open.set()
        check(workload, await asyncio.gather(*running))
    return grown / len(running) / 1024


class Door:
    """Tools that answer with new strings; the second one keeps everybody waiting until the door is open."""

    def __init__(self, tools: Sequence[Tool], guests: int) -> None:
        self.open = asyncio.Event()
        self.full = asyncio.Event()
        self._awaited = guests
        self.tools = (Doorman(tools[0], self._pass), Doorman(tools[1], self._wait))

    async def _pass(self) -> None: ...

    async def _wait(self) -> None:
        self._awaited -= 1
        if not self._awaited:
            self.full.set()
        await self.open.wait()


class Doorman:
    """A tool behind a door."""

    def __init__(self, tool: Tool, enter: Callable[[], Awaitable[None]]) -> None:
        self._tool = tool
        self._enter = enter
        self.policy = ToolPolicy(max_concurrency=100_000, timeout_s=600.0)

    @property
    def spec(self) -> ToolSpec:
        return self._tool.spec

    async def __call__(self, arguments: Mapping[str, Any]) -> str:
        await self._enter()
        return "".join(list(await self._tool(arguments)))


def resident_bytes() -> int:
    """Return the process's resident memory."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # no Linux: the largest so far, which is near enough as it only grows here
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
