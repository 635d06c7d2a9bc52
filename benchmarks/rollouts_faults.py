"""What faults do to a step: engines that fail in every way and die, tools that raise and hang, and Ctrl-C."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from rich.table import Table
from rollouts_stub import StubProcess, connected
from rollouts_work import LONG_S, SAMPLING, Scene, SlowTool, free_score

from icrl.runtime.rollout import Rollout, RolloutPolicy
from icrl.runtime.tools.tool import ToolPolicy
from icrl.trajectory import Trajectory

EngineFault = Literal[
    "none", "error_500", "error_429", "resets", "truncated", "garbage", "dies_mid_stream", "killed", "interrupted"
]
ToolFault = Literal["none", "raises", "times out", "stalls"]
TOOL_TIMEOUT_S = 1.0
STALL_S = 5.0
KILLED_AFTER_S = 0.5
DOWN_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Faulty:
    """Faults of engines and tools."""

    trajectories: int = 64
    """Trajectories in a step."""
    share: float = 0.05
    """Share of requests, and of tool calls, that fail."""
    engine: tuple[EngineFault, ...] = get_args(EngineFault)
    """What the engine does: status 500 or 429, a reset, a reply that is cut, is no JSON, or breaks off; it is killed
    in the middle of the step and started again; or nothing, and the user presses Ctrl-C."""
    tools: tuple[ToolFault, ...] = get_args(ToolFault)
    """What tools do: raise, hang until their timeout, or hang without one until the watchdog ends the trajectory."""
    deadline_s: float = 30.0
    """Seconds in which the step has to end."""


@dataclass(slots=True)
class BrokenTool(SlowTool):
    """A tool that fails for some of its answers, always for the same."""

    fault: ToolFault = "none"
    share: float = 0.0
    broke: set[str] = field(default_factory=set)

    async def __call__(self, arguments: Mapping[str, Any]) -> str:
        text = await self.inner(arguments)
        if self.fault != "none" and random.Random(text).random() < self.share:
            self.broke.add(next(iter(arguments.values())))
            if self.fault == "raises":
                raise RuntimeError("this call was to fail")
            await asyncio.Event().wait()
        return text


def measure(options: Faulty) -> list[dict[str, Any]]:
    """Return a row for every cell."""
    scene = Scene(options.trajectories)
    rows: list[dict[str, Any]] = []
    unharmed: list[Trajectory] = []
    for engine in ("none", *(fault for fault in options.engine if fault != "none")):
        faults = {} if engine in ("none", "killed", "interrupted") else {engine: options.share}
        with StubProcess(trajectories=options.trajectories, scale=1.0, faults=faults) as stub:
            failed = 0
            for tools in ("none", *(fault for fault in options.tools if fault != "none")):
                cell, trajectories = asyncio.run(_cell(options, scene, stub, engine, tools))
                unharmed = unharmed or trajectories
                cell["faults"] = cell["failed"] - failed + len(cell["affected"])
                failed = cell["failed"]
                rows.append({"engine": engine, "tools": tools, **cell, **_compare(trajectories, unharmed, cell)})
    return rows


async def _cell(
    options: Faulty, scene: Scene, stub: StubProcess, engine_fault: str, tool_fault: ToolFault
) -> tuple[dict[str, Any], list[Trajectory]]:
    """Run one step and return what was seen, and its trajectories."""
    timeout_s = TOOL_TIMEOUT_S if tool_fault == "times out" else LONG_S
    policy = ToolPolicy(timeout_s=timeout_s, max_concurrency=options.trajectories)
    tools = [BrokenTool(tool, {}, policy, fault=tool_fault, share=options.share) for tool in scene.work.tools]
    async with connected(stub.address, scene) as engine, scene.agent(engine, tools) as agent:
        bounds = RolloutPolicy(stall_s=STALL_S, step_deadline_s=options.deadline_s, feedback=False)
        concurrency = options.trajectories
        rollout = Rollout(agent, score=free_score, sampling=SAMPLING, concurrency=concurrency, policy=bounds)
        started = time.monotonic()
        async with asyncio.TaskGroup() as background:
            happening = background.create_task(_happen(engine_fault, stub, rollout))
            groups = await rollout.collect(scene.plans())
            wall_s = time.monotonic() - started
            stopped_s = await happening
    trajectories = [trajectory for group in groups for trajectory in group.trajectories]
    broken = {argument for tool in tools for argument in tool.broke}
    return {
        "wall_s": wall_s,
        "after_stop_s": started + wall_s - stopped_s if engine_fault == "interrupted" else None,
        "accounted": len(trajectories),
        "affected": [t.id for t in trajectories if any(_argument(call) in broken for call in t.calls)],
        "reasons": _count([trajectory.stop_reason.value for trajectory in trajectories]),
        "stalled": dict(rollout.tally.stalled),
        "in_time": wall_s < options.deadline_s,
        "tasks_left": len(asyncio.all_tasks()) - 1,
        "requests_left": (seen := stub.ask("state"))["live"],
        "failed": seen["failed"],
    }, trajectories


async def _happen(fault: str, stub: StubProcess, rollout: Rollout) -> float:
    """Do to the step what is to happen in its middle, and return when."""
    if fault == "killed":
        await asyncio.sleep(KILLED_AFTER_S)
        await asyncio.to_thread(stub.ask, "kill")
        await asyncio.sleep(DOWN_S)
        await asyncio.to_thread(stub.ask, "restart")
    if fault == "interrupted":
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, rollout.stop)
        await asyncio.sleep(KILLED_AFTER_S)
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.sleep(0.1)
        loop.remove_signal_handler(signal.SIGINT)
        return time.monotonic() - 0.1
    return time.monotonic()


def _argument(call: Any) -> Any:
    return next(iter(call.arguments.values()), None)


def _count(names: Sequence[str]) -> dict[str, int]:
    return {name: names.count(name) for name in sorted({*names})}


def _compare(
    trajectories: Sequence[Trajectory], unharmed: Sequence[Trajectory], cell: Mapping[str, Any]
) -> dict[str, int]:
    """Count the trajectories that nothing was done to, and those that are as in the step without faults."""
    expected = {trajectory.id: trajectory for trajectory in unharmed}
    spared = [trajectory for trajectory in trajectories if trajectory.id not in cell["affected"]]
    return {"spared": len(spared), "same": sum(_alike(t, expected[t.id]) for t in spared)}


def _alike(one: Trajectory, other: Trajectory) -> bool:
    if one.stop_reason.value == "aborted":  # a partial one: all that it has, the other has too
        return one.ids == other.ids[: len(one.ids)] and one.logprobs() == other.logprobs()[: len(one.ids)]
    return (one.ids, one.logprobs(), one.stop_reason) == (other.ids, other.logprobs(), other.stop_reason)


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Show the cells."""
    title = "faults: trajectories accounted for · spared ones that are as without · tasks and requests left · seconds"
    shown = Table(title=title)
    tools = list(dict.fromkeys(row["tools"] for row in rows))
    shown.add_column("engine")
    for fault in tools:
        shown.add_column(f"tools: {fault}")
    for engine in dict.fromkeys(row["engine"] for row in rows):
        cells = {row["tools"]: row for row in rows if row["engine"] == engine}
        shown.add_row(engine, *(_show(cells[fault]) for fault in tools))
    return shown


def _show(cell: Mapping[str, Any]) -> str:
    left = cell["tasks_left"] + cell["requests_left"]
    line = f"{cell['faults']}: {cell['accounted']} · {cell['same']}/{cell['spared']} · {left} · "
    if cell["after_stop_s"] is not None:
        return f"{line}{cell['after_stop_s']:.2f} s after"
    return f"{line}{cell['wall_s']:.1f} s{'' if cell['in_time'] else ', late'}"
