"""What tools learn of the trajectory that calls them, and that they hear of its end however it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from watched import idle, timeless, tool_call, until

from icrl.errors import DataError, SandboxError
from icrl.runtime.agent import Agent
from icrl.runtime.rollout import Plan, Rollout
from icrl.runtime.tools.context import current
from icrl.runtime.tools.journal import Recorder, Replayer
from icrl.runtime.tools.tool import Tool, ToolPolicy, ToolSpec
from icrl.runtime.tools.toolbox import Toolbox
from icrl.testing import ScriptedEngine
from icrl.trajectory import StopReason, Trajectory
from icrl.types import Limits, Task

ANSWER = "<answer> done </answer>"
CALL = tool_call("notes", text="a")


class Notes:
    """Counts the calls of every session, and forgets a session at its end."""

    spec = ToolSpec(name="notes", description="Take notes.", parameters={"type": "object", "properties": {}})
    policy = ToolPolicy()

    def __init__(self, *, error: Exception | None = None, hangs: bool = False, ends_in_s: float = 0.0) -> None:
        self.sessions: dict[str, int] = {}
        self.ended: list[str] = []
        self.error, self.hangs, self.ends_in_s = error, hangs, ends_in_s

    async def __call__(self, arguments: Mapping[str, Any]) -> str:
        session = current().session
        assert session
        self.sessions[session] = self.sessions.get(session, 0) + 1
        if self.error is not None:
            raise self.error
        if self.hangs:
            await asyncio.Event().wait()
        return f"note {self.sessions[session]}"

    async def end(self, session: str) -> None:
        await asyncio.sleep(self.ends_in_s)
        self.sessions.pop(session, None)
        self.ended.append(session)


async def score(trajectory: Trajectory, task: Task) -> SimpleNamespace:
    return SimpleNamespace(total=float(trajectory.answer == "done"), components={})


def agent(tools: list[Tool] | Toolbox, *script: str, **options: Any) -> Agent:
    return Agent(ScriptedEngine(list(script)), dialect="hermes", tools=tools, **options)


async def test_every_trajectory_has_a_session_of_its_own_and_ends_it():
    notes = Notes()
    async with agent([notes], CALL, CALL, ANSWER) as working:
        (group,) = await Rollout(working, score=score).collect([Plan(task=Task(query="go"), members=8, id="3/0/")])
    texts = [[result.text for result in trajectory.results] for trajectory in group.trajectories]
    assert texts == [["note 1", "note 2"]] * 8
    assert sorted(notes.ended) == [f"3/0/{member}" for member in range(8)]
    assert notes.sessions == {}


@pytest.mark.parametrize(
    ("notes", "reason"),
    [
        (Notes(error=SandboxError("escaped")), StopReason.ERROR),
        (Notes(hangs=True), StopReason.DEADLINE),
    ],
)
async def test_a_session_ends_however_the_run_ends(notes, reason):
    working = agent([notes], CALL, ANSWER, limits=Limits(deadline_s=0.3))
    trajectory = (await working.run("go")).trajectory
    assert trajectory.stop_reason is reason
    assert notes.ended == [trajectory.id]


@pytest.mark.parametrize("times", [1, 3])
async def test_a_cancelled_run_ends_its_session_however_often_it_is_cancelled(times):
    notes = Notes(hangs=True, ends_in_s=0.02)
    engine = ScriptedEngine([CALL, ANSWER])
    running = asyncio.create_task(Agent(engine, dialect="hermes", tools=[notes]).run("go"))
    await until(lambda: notes.sessions)
    for _ in range(times):
        running.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await running
    await until(lambda: notes.ended)
    await until(lambda: idle(engine))
    assert len(notes.ended) == 1


async def test_a_run_that_makes_no_call_ends_its_session_too():
    notes = Notes()
    await agent([notes], ANSWER).run("go")
    assert len(notes.ended) == 1


# ---- record and replay


async def test_a_recorded_rollout_is_replayed_token_by_token_without_its_tools(tmp_path):
    plans = [Plan(task=Task(query=f"go {i}"), members=4, id=f"0/{i}/") for i in range(4)]

    async def roll(tools: Toolbox) -> list[Trajectory]:
        async with agent(tools, CALL + CALL, CALL, ANSWER) as working:
            groups = await Rollout(working, score=score).collect(plans)
        return [timeless(trajectory) for group in groups for trajectory in group.trajectories]

    path = tmp_path / "tools.jsonl"
    recorder = await asyncio.to_thread(Recorder, path)
    recorded = await roll(Toolbox([Notes()], journal=recorder))
    silent = Notes(error=AssertionError("a replay calls nothing"))
    replayer = await asyncio.to_thread(Replayer, path)
    assert await roll(Toolbox([silent], journal=replayer)) == recorded
    assert len(path.read_text().splitlines()) == 16 * 3


async def test_a_replay_that_takes_another_course_ends_the_rollout(tmp_path):
    path = tmp_path / "tools.jsonl"
    recorder = await asyncio.to_thread(Recorder, path)
    await agent(Toolbox([Notes()], journal=recorder), CALL, ANSWER).run("go")
    replayer = await asyncio.to_thread(Replayer, path)
    other = tool_call("notes", text="b")
    async with agent(Toolbox([Notes()], journal=replayer), other, ANSWER) as working:
        plan = Plan(task=Task(query="go"), members=2)
        with pytest.raises(DataError, match=r'notes\(\{"text":"b"\}\) in session .* is not recorded'):
            await Rollout(working, score=score).collect([plan])
