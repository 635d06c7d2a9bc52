"""Rollouts whose tools hang, raise and flood: they end on time, and nobody pays for another's fault."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Sequence
from types import SimpleNamespace

import pytest
from watched import idle, tool_call

from icrl.runtime.agent import Agent
from icrl.runtime.rollout import Plan, Rollout
from icrl.runtime.tools.tool import ToolPolicy
from icrl.runtime.tools.toolbox import Toolbox
from icrl.testing import ByteTokenizer, FaultyTool, ScriptedEngine
from icrl.trajectory import StopReason, Trajectory
from icrl.types import Limits, Task

BYTES = ByteTokenizer()
CALLS = 3
TIMEOUT_S = 0.3


def speak(ids: Sequence[int]) -> str:
    """Ask three times for the question's number, then answer with it."""
    text = BYTES.decode(ids)
    number = re.findall(r"question (\d+)", text)[-1]
    done = text.count("<tool_response>")
    return number if done >= CALLS else tool_call("faulty", text=f"{number}.{done}")


async def score(trajectory: Trajectory, task: Task) -> SimpleNamespace:
    return SimpleNamespace(total=float(trajectory.answer in task.answers), components={})


async def test_a_rollout_with_faulty_tools_ends_on_time_with_every_trajectory():
    faulty = FaultyTool(hangs=0.05, raises=0.05, floods=0.05, seed=1, policy=ToolPolicy(timeout_s=TIMEOUT_S))
    engine = ScriptedEngine(speak, tokenizer=BYTES)
    limits = Limits(max_tokens=8000, max_observation_tokens=200, deadline_s=60.0)
    plans = [
        Plan(task=Task(query=f"question {i}", answers=(str(i),)), members=8, id=f"0/{i}/", seed=i) for i in range(10)
    ]
    toolbox = Toolbox([faulty])
    started = time.monotonic()
    async with Agent(engine, dialect="hermes", tools=toolbox, limits=limits) as agent:
        groups = await Rollout(agent, score=score).collect(plans)
    wall_s = time.monotonic() - started
    trajectories = [trajectory for group in groups for trajectory in group.trajectories]

    # On time: nobody waits for more than its own calls' timeouts; ten times that, as the machine may be busy.
    assert wall_s < 10 * CALLS * TIMEOUT_S + 10
    # Everybody is accounted for, and gets on whatever its calls came to.
    assert sorted(trajectory.id for trajectory in trajectories) == sorted(
        f"0/{i}/{m}" for i in range(10) for m in range(8)
    )
    assert {trajectory.stop_reason for trajectory in trajectories} == {StopReason.ANSWER}
    assert all(reward == 1.0 for group in groups for reward in group.rewards)
    # Every fault is what its own call was answered with, and nobody else's.
    faults = Counter(faulty.faults)
    assert sum(faults.values()) == 80 * CALLS
    assert min(faults["hangs"], faults["raises"], faults["floods"]) >= 5
    results = [result for trajectory in trajectories for result in trajectory.results]
    errors = Counter(result.error for result in results)
    assert errors == {
        "ToolTimeout": faults["hangs"],
        "RuntimeError": faults["raises"],
        None: faults[""] + faults["floods"],
    }
    for trajectory in trajectories:
        number = trajectory.task.answers[0]
        for turn, result in enumerate(trajectory.results):
            if result.error is None and not result.truncated:
                assert result.text == f"{number}.{turn}"
    flooded = [result for result in results if result.truncated]
    assert len(flooded) == faults["floods"]
    assert all(len(result.text) < 300_000 for result in flooded)
    assert all(len(trajectory.ids) < 9000 for trajectory in trajectories)
    # The books agree, and nothing is left.
    account = toolbox.accounts["faulty"]
    assert (account.calls, account.answered, account.cancelled) == (240, 240, 0)
    assert account.errors == {"ToolTimeout": faults["hangs"], "RuntimeError": faults["raises"]}
    assert faulty.running == 0
    assert idle(engine)


async def test_trajectories_without_time_keep_what_they_have():
    faulty = FaultyTool(hangs=0.5, seed=3)
    engine = ScriptedEngine(speak, tokenizer=BYTES)
    plans = [Plan(task=Task(query=f"question {i}", answers=(str(i),)), members=8, id=f"0/{i}/") for i in range(8)]
    limits = Limits(max_tokens=8000, deadline_s=2.0)
    started = time.monotonic()
    async with Agent(engine, dialect="hermes", tools=[faulty], limits=limits) as agent:
        groups = await Rollout(agent, score=score).collect(plans)
    assert time.monotonic() - started < 20.0
    reasons = Counter(trajectory.stop_reason for group in groups for trajectory in group.trajectories)
    assert sum(reasons.values()) == 64
    assert set(reasons) <= {StopReason.ANSWER, StopReason.DEADLINE}
    assert reasons[StopReason.DEADLINE] > 20
    for group in groups:
        for trajectory, reward in zip(group.trajectories, group.rewards, strict=True):
            assert reward == float(trajectory.stop_reason is StopReason.ANSWER)
    assert faulty.running == 0
    assert idle(engine)


@pytest.mark.learning
def test_a_training_step_with_faulty_tools_ends_on_time(tmp_path):
    from tools_of_a_user import search

    from icrl.train.__main__ import main as train

    run = tmp_path / "run"
    started = time.monotonic()
    train(
        [
            "--tools=tools_of_a_user:search",
            "--rollout.prompts=8",
            "--rollout.group-size=8",
            "--limits.max-tokens=64",
            "--schedule=3:1",
            "--evaluation.tasks=2",
            "--evaluation.every-steps=0",
            "--weights.format=0.5",
            f"--output-dir={run}",
        ]
    )
    assert time.monotonic() - started < 60.0
    trajectories = [json.loads(line) for line in (run / "trajectories.jsonl").read_text().splitlines()]
    (metrics,) = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(trajectories) == 64
    assert sum(metrics["stop_reasons"].values()) == 64
    assert "deadline" not in metrics["stop_reasons"]
    assert "error" not in metrics["stop_reasons"]
    faults = Counter(search.faults)
    assert sum(faults.values()) >= 30
    assert min(faults["hangs"], faults["raises"], faults["floods"]) >= 1
    shown = Counter(s["result"]["error"] for t in trajectories for s in t["segments"] if s["result"] is not None)
    assert shown["ToolTimeout"] >= 1
    assert shown["RuntimeError"] >= 1
    assert search.running == 0
    assert (run / "model" / "model.safetensors").exists()
