"""Memory of a trajectory in flight: all of them wait inside their second tool call while a fresh process is weighed."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table
from rollouts_stub import StubProcess, connected
from rollouts_work import LONG_S, SAMPLING, InstantEngine, Scene, free_score
from workload import Episode

from icrl import Agent
from icrl.runtime.dialect import find_dialect
from icrl.runtime.rollout import Plan, Rollout, RolloutPolicy
from icrl.runtime.tools.tool import ToolPolicy, ToolSpec
from icrl.trajectory import Group, Trajectory

WARM_UP = 64
PAGE_KIB = os.sysconf("SC_PAGE_SIZE") / 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Memory per trajectory in flight."""

    trajectories: int = 4096
    """Trajectories in flight."""


@dataclass(slots=True, eq=False)
class DoorTool:
    """A tool that answers with new strings, as tools do, once its door is open."""

    spec: ToolSpec
    answers: Mapping[str, str]
    door: asyncio.Event
    policy: ToolPolicy = field(default_factory=lambda: ToolPolicy(timeout_s=LONG_S, max_concurrency=1 << 20))
    waiting: int = 0

    async def __call__(self, arguments: Mapping[str, Any]) -> str:
        self.waiting += 1
        await self.door.wait()
        return self.answers[next(iter(arguments.values()))].encode().decode()


class Weighed:
    """What a fresh process needs of a scene: made by another, so that nothing but trajectories is made here.

    Args:
        scene: An empty scene, for its tokenizer and tools.
        contents: Episodes and the tools' answers.
    """

    def __init__(self, scene: Scene, contents: tuple[list[Episode], dict[str, str]]) -> None:
        self.scene, (self.episodes, answers) = scene, contents
        scene.work.episodes = self.episodes
        opened = asyncio.Event()
        opened.set()
        search, python = (tool.spec for tool in scene.work.tools)
        self.held = DoorTool(python, answers, asyncio.Event())
        self.tools = [DoorTool(search, answers, opened), self.held]


def measure(options: Memory) -> list[dict[str, Any]]:
    """Return a row for the engine in the process, and one for HTTP."""
    with tempfile.TemporaryDirectory() as directory:
        contents = Path(directory) / "contents"
        contents.write_bytes(pickle.dumps(_contents(options.trajectories)))
        rows = [_in_fresh_process(contents, "")]
        with StubProcess(trajectories=options.trajectories) as stub:
            rows.append(_in_fresh_process(contents, stub.address))
    return rows


def _contents(trajectories: int) -> tuple[list[Episode], dict[str, str]]:
    scene = Scene(trajectories)
    work, dialect, specs = scene.work, find_dialect(scene.work.dialect), [tool.spec for tool in scene.work.tools]
    answers: dict[str, str] = {}
    for episode in work.episodes:
        replies = [dialect.parse(work.tokenizer, tuple(reply.ids), tools=specs, turn=0) for reply in episode.replies]
        asked = [next(iter(call.arguments.values())) for reply in replies for call in reply.calls]
        answers |= zip(asked, episode.results, strict=True)
    return work.episodes, answers


def _in_fresh_process(contents: Path, address: str) -> dict[str, Any]:
    command = [sys.executable, str(Path(__file__)), str(contents), address]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, timeout=600)
    return dict(json.loads(done.stdout))


async def weigh(contents: Path, address: str) -> dict[str, Any]:
    """Weigh this process before, and while all trajectories wait for their second tool."""
    weighed = Weighed(Scene(1), pickle.loads(await asyncio.to_thread(contents.read_bytes)))
    scene, held, trajectories = weighed.scene, weighed.held, len(weighed.episodes)
    engine = connected(address, scene) if address else nullcontext(InstantEngine(scene))
    async with engine as opened, scene.agent(opened, weighed.tools) as agent:
        await _let_go(held, await _held(agent, held, scene.plans()[:WARM_UP]))
        gc.collect()
        before = _resident_kib()
        pending = await _held(agent, held, scene.plans())
        gc.collect()
        after = _resident_kib()
        tasks = len(asyncio.all_tasks())
        groups = await _let_go(held, pending)
    return {
        "engine": "http" if address else "in process",
        "trajectories": trajectories,
        "kib": (after - before) / trajectories,
        "base_mib": before / 1024,
        "tasks": tasks,
        "tokens": sum(_tokens_held(t) for group in groups for t in group.trajectories) / trajectories,
        "exact": scene.exact(groups),
        "tasks_left": len(asyncio.all_tasks()) - 1,
    }


async def _held(agent: Agent, held: DoorTool, plans: Sequence[Plan]) -> asyncio.Task[list[Group]]:
    """Start the plans and come back when all wait."""
    held.waiting = 0
    held.door.clear()
    policy = RolloutPolicy(feedback=False)
    rollout = Rollout(agent, score=free_score, sampling=SAMPLING, concurrency=len(plans), policy=policy)
    pending = asyncio.create_task(rollout.collect(plans))
    while held.waiting < len(plans):
        if pending.done() or rollout.tally.failed:
            raise RuntimeError(f"not every trajectory comes to its second call: {rollout.tally}")
        await asyncio.sleep(0.05)
    await asyncio.sleep(1.0)
    return pending


async def _let_go(held: DoorTool, pending: asyncio.Task[list[Group]]) -> list[Group]:
    held.door.set()
    return await pending


def _tokens_held(trajectory: Trajectory) -> int:
    """Tokens of a trajectory up to its second call."""
    segments = trajectory.segments
    second = [i for i, segment in enumerate(segments) if segment.source == "policy"][1]
    return sum(len(segment.ids) for segment in segments[: second + 1])


def _resident_kib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_KIB


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Show the rows."""
    shown = Table(title="memory while every trajectory waits inside its second tool call")
    for column in ("engine", "in flight", "tokens each", "KiB each", "before, MiB", "tasks", "tasks left", "exact"):
        shown.add_column(column, justify="right")
    for row in rows:
        shown.add_row(
            row["engine"],
            str(row["trajectories"]),
            f"{row['tokens']:,.0f}",
            f"{row['kib']:.1f}",
            f"{row['base_mib']:.0f}",
            str(row["tasks"]),
            str(row["tasks_left"]),
            str(row["exact"]),
        )
    return shown


if __name__ == "__main__":
    print(json.dumps(asyncio.run(weigh(Path(sys.argv[1]), sys.argv[2]))))
