"""Client CPU per turn: the whole loop with an engine that answers at once, on the workload of docs/benchmarks.md."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from icrl import Agent, Limits, tool
from icrl.config import load
from icrl.runtime.engines.protocol import EngineInfo
from icrl.tiny import BASE_DIR
from icrl.tokenizer import ChatTokenizer
from icrl.trajectory import Generation, Trajectory
from icrl.types import SamplingParams, Task

TURNS = 3
SENTENCE = "The river of Liror runs past the old mill and the long bridge to the sea . "


@dataclass(frozen=True, slots=True, kw_only=True)
class Overhead:
    """CPU microseconds of the client per turn, with an instant scripted engine and instant tools."""

    trajectories: int = 256
    """Trajectories in flight at once; three turns each."""
    repeats: int = 5
    """Measurements; the median is printed."""
    history: int = 1000
    """Prompt tokens, roughly."""
    json: bool = False
    """Print JSON instead of a table."""


def main(argv: Sequence[str]) -> None:
    options = load(Overhead, argv, prog="benchmarks/run.py overhead", description=str(Overhead.__doc__))
    tokenizer = ChatTokenizer.load(BASE_DIR)
    figures = {}
    for dialect in ("xml",):
        samples = [asyncio.run(measure(options, tokenizer, dialect)) for _ in range(options.repeats)]
        figures[dialect] = {"median_us": statistics.median(samples), "samples_us": samples}
    if options.json:
        print(json.dumps({"options": {"trajectories": options.trajectories, "history": options.history}, **figures}))
        return
    table = Table(title=f"client CPU per turn\n{options.trajectories} trajectories of {TURNS} turns")
    for column in ("dialect", "median µs", "all µs"):
        table.add_column(column)
    for dialect, found in figures.items():
        table.add_row(dialect, f"{found['median_us']:.0f}", " ".join(f"{s:.0f}" for s in found["samples_us"]))
    Console().print(table)


async def measure(options: Overhead, tokenizer: ChatTokenizer, dialect: str) -> float:
    """Return CPU µs per turn."""
    engine = InstantEngine(tokenizer)
    agent = Agent(engine, tools=[search], dialect=dialect, limits=Limits(max_tokens=4096, max_observation_tokens=512))
    question = SENTENCE * (options.history // 20)
    async with agent:
        # Members of a group share one rendered prompt, as in training.
        task = Task(query=question)
        prompt = agent.model.prompt(task.messages, ())

        def run(number: int) -> Awaitable[Trajectory]:
            sampling = SamplingParams(max_tokens=512, seed=number)
            return agent.prepare(task, prompt, shots=0, sampling=sampling, trajectory_id=str(number)).execute()

        await asyncio.gather(*map(run, range(16)))  # warm-up
        started = time.process_time()
        trajectories = await asyncio.gather(*map(run, range(options.trajectories)))
        spent = time.process_time() - started
    assert all(len(trajectory.turns) == TURNS for trajectory in trajectories)
    return spent / (options.trajectories * TURNS) * 1e6


class InstantEngine:
    """Hands out prepared generations of about 150 tokens: two calls, then an answer. Costs next to nothing itself."""

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        self.tokenizer = tokenizer
        self.info = EngineInfo(name="instant", vocab_size=tokenizer.vocab_size, context_limit=1_000_000)
        thought = f"<think> {SENTENCE * 6}</think>\n"
        texts = [f"{thought}<search> river of Liror </search>"] * 2 + [f"{thought}<answer> Torer </answer>"]
        self.replies = [
            Generation(ids=ids, logprobs=(-0.5,) * len(ids), finish_reason="stop")
            for ids in (tuple(tokenizer.encode(text)) for text in texts)
        ]

    async def generate(self, ids: Sequence[int], params: SamplingParams, *, request_id: str, **_: object) -> Generation:
        return self.replies[int(request_id.rpartition("/")[2])]

    async def abort(self, request_id: str) -> None: ...

    async def aclose(self) -> None: ...


@tool
async def search(query: str) -> str:
    """Search.

    Args:
        query: What to look for.
    """
    return SENTENCE * 12
