"""What the tool runtime costs per call, and what its cache and shared runs save on groups of trajectories."""

from __future__ import annotations

import asyncio
import bisect
import itertools
import random
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from icrl.runtime.tools.cache import ToolCache
from icrl.runtime.tools.journal import Recorder
from icrl.runtime.tools.tool import Tool, ToolPolicy, ToolSpec
from icrl.runtime.tools.toolbox import Toolbox
from icrl.types import ToolCall

PROMPTS, MEMBERS, TURNS, STEPS = 16, 8, 2, 8
"""A training step as the trainer makes them, and how many in a row."""


class Instant:
    """Answers at once."""

    fingerprint = "1"
    spec = ToolSpec(name="instant", description="Answer at once.", parameters={"type": "object", "properties": {}})

    def __init__(self, **policy: Any) -> None:
        self.policy = ToolPolicy(**policy)

    async def __call__(self, arguments: Mapping[str, Any]) -> str:
        return "an answer"


def measure() -> dict[str, Any]:
    """Return CPU µs per call by kind of call, and the calls saved on groups."""
    return {"overhead_us": asyncio.run(_overhead()), "savings": asyncio.run(_savings())}


def tables(found: dict[str, Any]) -> list[Table]:
    """Show what `measure` returned."""
    overhead = Table(title="tool runtime, CPU per call")
    overhead.add_column("call")
    overhead.add_column("µs", justify="right")
    for name, value in found["overhead_us"].items():
        overhead.add_row(name, f"{value:.1f}")
    savings = Table(title=f"{STEPS} steps of {PROMPTS} groups of {MEMBERS}, {TURNS} searches each")
    for column in ("with", "calls", "searches", "saved", "CPU ms a step"):
        savings.add_column(column, justify="left" if column == "with" else "right")
    for name, row in found["savings"].items():
        counts = (f"{row['calls']}", f"{row['searches']}", f"{row['saved']:.0%}", f"{row['cpu_ms_per_step']:.1f}")
        savings.add_row(name, *counts)
    return [overhead, savings]


async def _overhead(calls: int = 2000, repeats: int = 7) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as directory:
        plain = Instant()
        boxes = {
            "default policy": Toolbox([plain]),
            "with a rate limit": Toolbox([Instant(calls_per_s=1e9)]),
            "with retries allowed": Toolbox([Instant(retries=2)]),
            "repeatable, answered anew": Toolbox([Instant(repeatable=True)]),
            "answered from the cache": Toolbox([Instant(repeatable=True)], cache=ToolCache()),
            "recorded": Toolbox(
                [Instant()], journal=await asyncio.to_thread(Recorder, Path(directory) / "journal.jsonl")
            ),
        }
        found = {"bare await": await _cpu_us(lambda n: plain({"query": "who"}), calls, repeats)}
        for name, box in boxes.items():
            found[name] = await _cpu_us(lambda n, box=box: _ask(box, "who"), calls, repeats)
            await box.aclose()
        shared = Toolbox([Instant(repeatable=True)])
        found["in a shared run of 8"] = await _cpu_us(
            lambda n: asyncio.gather(*(_ask(shared, "who") for _ in range(MEMBERS))), calls // MEMBERS, repeats
        )
        found["in a shared run of 8"] /= MEMBERS
    return found


def _ask(box: Toolbox, query: str, name: str = "instant") -> Awaitable[Any]:
    return box.run(ToolCall(name=name, arguments={"query": query}), deadline_s=30.0)


async def _cpu_us(call: Callable[[int], Awaitable[Any]], calls: int, repeats: int) -> float:
    """Return the median CPU µs per call over `repeats` rounds."""
    samples = []
    for _ in range(repeats + 1):  # the first is a warm-up
        started = time.process_time()
        for number in range(calls):
            await call(number)
        samples.append((time.process_time() - started) / calls * 1e6)
    return statistics.median(samples[1:])


async def _savings() -> dict[str, dict[str, float]]:
    """Search the embedded corpus as groups do: members of a group ask much the same, and tasks come back."""
    found = {}
    steps = [_members(step) for step in range(STEPS)]
    for name, repeatable, cache in (
        ("neither", False, None),
        ("shared runs", True, None),
        ("shared runs and cache", True, ToolCache()),
    ):
        search = await _open_search(repeatable=repeatable)
        box = Toolbox([search], cache=cache)
        started = time.process_time()
        for members in steps:
            await _step(box, search.spec.name, members)
        spent = time.process_time() - started
        account = box.accounts[search.spec.name]
        await box.aclose()
        found[name] = {
            "calls": account.calls,
            "searches": account.runs,
            "saved": 1 - account.runs / account.calls,
            "cpu_ms_per_step": spent / STEPS * 1e3,
        }
    return found


async def _step(box: Toolbox, name: str, members: Sequence[Sequence[str]]) -> None:
    async def member(queries: Sequence[str]) -> None:
        for query in queries:
            await _ask(box, query, name)

    await asyncio.gather(*(member(queries) for queries in members))


def _members(step: int) -> list[list[str]]:
    """Draw the queries of every member of a step: the group's own words by a Zipf law, over tasks by another."""
    from icrl.tiny import TRAIN
    from icrl.train.tasks import load_tasks

    rng = random.Random(step)
    tasks = load_tasks(TRAIN)
    queries = [str(task.query) for task in tasks]
    drawn = []
    for _ in range(PROMPTS):
        own = _zipf(queries, rng, exponent=0.5)
        variants = [own, *(" ".join(own.split()[start:]) for start in range(1, 6))]
        drawn += [[_zipf(variants, rng, exponent=1.2) for _ in range(TURNS)] for _ in range(MEMBERS)]
    return drawn


def _zipf(items: Sequence[str], rng: random.Random, *, exponent: float) -> str:
    weights = list(itertools.accumulate(1 / rank**exponent for rank in range(1, len(items) + 1)))
    return items[bisect.bisect(weights, rng.random() * weights[-1])]


async def _open_search(*, repeatable: bool) -> Tool:
    from icrl.runtime.settings import EMBEDDED, AgentSettings
    from icrl.runtime.toolset import open_tools

    (search,) = await open_tools(("search",), AgentSettings(index=EMBEDDED))
    return _Repeatable(search, repeatable=repeatable)


class _Repeatable:
    """The embedded search under the policy that is measured."""

    def __init__(self, search: Tool, *, repeatable: bool) -> None:
        self._search = search
        self.spec = search.spec
        self.policy = ToolPolicy(repeatable=repeatable)
        self.fingerprint = "embedded"

    async def __call__(self, arguments: Mapping[str, Any]) -> str:
        return await self._search(arguments)

    async def aclose(self) -> None:
        await self._search.aclose()  # type: ignore[attr-defined]
