"""Client CPU per turn with an engine that answers at once, in this process and over HTTP, and where it goes."""

from __future__ import annotations

import asyncio
import gc
import signal
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from types import FrameType
from typing import Any

from rich.table import Table
from rollouts_stub import StubProcess, connected_directly
from rollouts_work import MEMBERS, SAMPLING, InstantEngine, Scene, free_score
from workload import TURNS

from icrl import Agent
from icrl.runtime.rollout import Rollout, RolloutPolicy
from icrl.tokenizer import Encoder

SAMPLE_EVERY_S = 0.001
PARTS = {
    "engine client": ("icrl/runtime/engines", "/aiohttp/", "/yarl/", "/multidict/"),
    "dialect": ("icrl/runtime/dialect",),
    "tools": ("icrl/runtime/tools", "benchmarks/workload"),
    "run": ("icrl/runtime/run", "icrl/events", "icrl/trajectory", "icrl/types", "icrl/seeds"),
    "scheduler": ("icrl/runtime/rollout", "icrl/runtime/agent", "icrl/runtime/model"),
    "tokenizer": ("icrl/tokenizer", "icrl/rendered", "icrl/template", "/jinja2/"),
    "event loop": ("/asyncio/", "/selectors"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Overhead:
    """Client CPU per turn."""

    trajectories: int = 256
    """Trajectories in flight at once, in groups of eight; three turns each."""
    repeats: int = 5
    """Measurements of each kind; the median counts."""
    prompts: tuple[int, ...] = (508, 6932)
    """Tokens of the prompt; a request has some 450 more on average."""
    encoders: tuple[Encoder, ...] = ("huggingface", "fast")
    """Who encodes the tools' results."""


def measure(options: Overhead) -> list[dict[str, Any]]:
    """Return a row for every prompt, encoder and engine."""
    rows = []
    for prompt_tokens in options.prompts:
        with StubProcess(trajectories=options.trajectories, prompt_tokens=prompt_tokens, members=MEMBERS) as stub:
            for encoder in options.encoders:
                scene = Scene(options.trajectories, prompt_tokens=prompt_tokens, members=MEMBERS, encoder=encoder)
                for address in ("", stub.address):
                    found = asyncio.run(_measure(options, scene, address))
                    engine = "http" if address else "in process"
                    rows.append({"prompt": prompt_tokens, "encoder": encoder, "engine": engine, **found})
    return rows


async def _measure(options: Overhead, scene: Scene, address: str) -> dict[str, Any]:
    engine = connected_directly(address, scene) if address else nullcontext(InstantEngine(scene))
    async with engine as opened, scene.agent(opened, scene.work.tools) as agent:
        await _spent_us(agent, scene)  # imports, connections, compiled things
        samples = [await _spent_us(agent, scene) for _ in range(options.repeats)]
        with _watching() as seen:
            await _spent_us(agent, scene)
    return {
        "encoding_us": _encoding_us(scene),
        "median_us": statistics.median(us for us, _ in samples),
        "samples_us": [us for us, _ in samples],
        "exact": min(exact for _, exact in samples),
        "trajectories": len(scene.courses),
        "parts": {part: count / max(1, seen.total()) for part, count in seen.most_common()},
    }


async def _spent_us(agent: Agent, scene: Scene) -> tuple[float, int]:
    """Roll everything out and return CPU µs per turn, and how many trajectories are exact."""
    policy = RolloutPolicy(feedback=False)
    concurrency = len(scene.courses)
    rollout = Rollout(agent, score=free_score, sampling=SAMPLING, concurrency=concurrency, policy=policy)
    plans = scene.plans()
    gc.collect()
    started = time.process_time()
    groups = await rollout.collect(plans)
    spent = time.process_time() - started
    return spent / (concurrency * TURNS) * 1e6, scene.exact(groups)


def _encoding_us(scene: Scene) -> float:
    """CPU µs per turn of encoding the tools' results and nothing else, which tells how fast the machine is just now."""
    texts = [text for episode in scene.work.episodes for text in episode.results]
    started = time.process_time()
    for text in texts:
        scene.work.tokenizer.encode(text)
    return (time.process_time() - started) / (len(scene.courses) * TURNS) * 1e6


@contextmanager
def _watching() -> Iterator[Counter[str]]:
    """Note every millisecond of CPU which part of the client runs."""
    seen: Counter[str] = Counter()

    def note(_: int, frame: FrameType | None) -> None:
        seen[_part(frame)] += 1

    before = signal.signal(signal.SIGPROF, note)
    signal.setitimer(signal.ITIMER_PROF, SAMPLE_EVERY_S, SAMPLE_EVERY_S)
    try:
        yield seen
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def _part(frame: FrameType | None) -> str:
    """Name the part that the innermost frame with a name belongs to."""
    while frame is not None:
        for part, marks in PARTS.items():
            if any(mark in frame.f_code.co_filename for mark in marks):
                return part
        frame = frame.f_back
    return "other"


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Show the rows."""
    shown = Table(title="client CPU per turn, engine and tools instant")
    for column in (
        "prompt",
        "encoder",
        "engine",
        "median µs",
        "all µs",
        "results encoded alone, µs",
        "exact",
        "of which",
    ):
        shown.add_column(column, justify="left" if column == "of which" else "right")
    for row in rows:
        parts = ", ".join(f"{part} {share:.0%}" for part, share in row["parts"].items() if share >= 0.02)
        shown.add_row(
            str(row["prompt"]),
            row["encoder"],
            row["engine"],
            f"{row['median_us']:.0f}",
            " ".join(f"{us:.0f}" for us in row["samples_us"]),
            f"{row['encoding_us']:.0f}",
            f"{row['exact']}/{row['trajectories']}",
            parts,
        )
    return shown


def draw_plot(rows: Sequence[Mapping[str, Any]], axes: Any) -> None:
    """Draw a stacked bar a row."""
    names = [f"{row['engine']}\n{row['encoder']}\n{row['prompt']}" for row in rows]
    below = [0.0] * len(rows)
    for part in (*PARTS, "other"):
        heights = [row["median_us"] * row["parts"].get(part, 0.0) for row in rows]
        axes.bar(names, heights, bottom=below, label=part)
        below = [low + height for low, height in zip(below, heights, strict=True)]
    axes.set(ylabel="CPU µs per turn", title="client CPU, engine and tools instant")
    axes.tick_params(axis="x", labelsize=6)
    axes.legend(fontsize=6)
