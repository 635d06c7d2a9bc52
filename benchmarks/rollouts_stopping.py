"""What stopping groups in flight saves and what it loses, on a simulated mixture of tasks.

Every task has a probability of success, drawn from a Beta distribution; whether a member succeeds and how long it
takes is decided by its seed, so that all arms see the very same trajectories and differ only in which they end early.
"""

from __future__ import annotations

import asyncio
import math
import random
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from rich.table import Table

from icrl import Agent, SamplingParams, Task
from icrl.runtime.engines.protocol import EngineInfo
from icrl.runtime.rollout import Plan, Rollout, RolloutPolicy
from icrl.testing import ByteTokenizer
from icrl.trajectory import Generation, Group, StopReason, Trajectory

MEAN_TOKENS = 200
FAILURE_IS_LONGER = 1.5
ANSWERS = {True: "<answer> right </answer>", False: "<answer> wrong </answer>"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopping:
    """Stopping groups in flight."""

    epsilons: tuple[float, ...] = (0.02, 0.05, 0.1, 0.2)
    """Bounds to try: a group is stopped when its chance to become informative falls below."""
    mixtures: tuple[str, ...] = ("1,1", "0.3,0.3", "4,0.5")
    """Beta distributions of a task's probability of success: any, mostly hopeless or mastered, mostly mastered."""
    groups: int = 150
    """Groups in an arm."""
    members: int = 8
    """Trajectories in a group."""
    concurrency: int = 64
    """Trajectories in flight."""
    token_s: float = 0.0007
    """Seconds a token takes."""


@dataclass(frozen=True, slots=True)
class Fate:
    """What becomes of a member if it is let."""

    succeeds: bool
    tokens: int


class FatedEngine:
    """Answers right or wrong, and after as many tokens, as was decided for the member."""

    def __init__(self, fates: Sequence[Sequence[Fate]], token_s: float) -> None:
        self.tokenizer = ByteTokenizer()
        self.info = EngineInfo(name="fated", vocab_size=self.tokenizer.vocab_size, context_limit=100_000)
        self.sampled = 0
        self._fates, self._token_s = fates, token_s
        self._live: dict[str, asyncio.Event] = {}

    async def generate(self, ids: Sequence[int], params: SamplingParams, *, request_id: str, **_: object) -> Generation:
        group, member = map(int, request_id.partition("/")[0].split("."))
        fate = self._fates[group][member]
        text = ANSWERS[fate.succeeds]
        reply = tuple(self.tokenizer.encode("." * (fate.tokens - len(text)) + text))
        aborted = self._live[request_id] = asyncio.Event()
        started = time.monotonic()
        try:
            async with asyncio.timeout(fate.tokens * self._token_s):
                await aborted.wait()
            reply = reply[: int((time.monotonic() - started) / self._token_s)]
        except TimeoutError:
            pass
        finally:
            del self._live[request_id]
        self.sampled += len(reply)
        return Generation(
            ids=reply,
            logprobs=(-0.5,) * len(reply),
            finish_reason="abort" if len(reply) < fate.tokens else "stop",
        )

    async def abort(self, request_id: str) -> None:
        if request_id in self._live:
            self._live[request_id].set()

    async def aclose(self) -> None: ...


def measure(options: Stopping) -> list[dict[str, Any]]:
    """Return a row for every mixture and bound, the first of each mixture without stopping."""
    rows = []
    for mixture in options.mixtures:
        fates = _fates(options, mixture)
        without: dict[str, Any] = {}
        for epsilon in (None, *options.epsilons):
            row = asyncio.run(_arm(options, fates, epsilon)) | {"mixture": mixture, "epsilon": epsilon}
            without = without or row
            rows.append(row | _against(without, row))
    return rows


def _fates(options: Stopping, mixture: str) -> list[list[Fate]]:
    """Draw what becomes of every member; failures take longer, as they do."""
    draw = random.Random(f"stopping {mixture}")
    alpha, beta = map(float, mixture.split(","))
    fates = []
    for _ in range(options.groups):
        chance = draw.betavariate(alpha, beta)
        fates.append([_fate(draw, chance) for _ in range(options.members)])
    return fates


def _fate(draw: random.Random, chance: float) -> Fate:
    succeeds = draw.random() < chance
    tokens = MEAN_TOKENS * math.exp(draw.gauss(0, 0.6)) * (1.0 if succeeds else FAILURE_IS_LONGER)
    return Fate(succeeds, int(min(2000, max(40, tokens))))


async def _arm(options: Stopping, fates: Sequence[Sequence[Fate]], epsilon: float | None) -> dict[str, Any]:
    engine = FatedEngine(fates, options.token_s)
    async with Agent(engine, tools=[]) as agent:
        rollout = Rollout(
            agent,
            score=_score,
            sampling=SamplingParams(max_tokens=4096),
            concurrency=options.concurrency,
            policy=RolloutPolicy(stop_groups_below=epsilon),
        )
        plans = [
            Plan(task=Task(query=f"Task {i}?", answers=("right",)), members=options.members, id=f"{i}.")
            for i in range(options.groups)
        ]
        started = time.monotonic()
        groups = await rollout.collect(plans)
        wall_s = time.monotonic() - started
    return {
        "wall_s": wall_s,
        "tokens": engine.sampled,
        "estimate": rollout.tally.tokens_saved_estimate,
        "stopped": rollout.tally.groups_stopped,
        "informative": [index for index, group in enumerate(groups) if _informative(group)],
        "success": statistics.fmean(_success(group) for group in groups),
    }


async def _score(trajectory: Trajectory, task: Task) -> SimpleNamespace:
    return SimpleNamespace(total=float(trajectory.answer in task.answers), components={})


def _ended(group: Group) -> list[float]:
    """Rewards of the members that came to an end of their own."""
    pairs = zip(group.trajectories, group.rewards, strict=True)
    return [reward for trajectory, reward in pairs if trajectory.stop_reason is StopReason.ANSWER]


def _informative(group: Group) -> bool:
    return len(set(_ended(group))) > 1


def _success(group: Group) -> float:
    ended = _ended(group)
    return statistics.fmean(ended) if ended else 0.0


def _against(without: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
    """Compare an arm with the one that stops nothing."""
    lost = set(without["informative"]) - set(row["informative"])
    return {
        "saved": 1 - row["tokens"] / without["tokens"],
        "saved_estimate": row["estimate"] / without["tokens"],
        "informative": len(row["informative"]),
        "lost": len(lost) / max(1, len(without["informative"])),
        "bias": row["success"] - without["success"],
        "faster": 1 - row["wall_s"] / without["wall_s"],
    }


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Show the rows."""
    shown = Table(title="stopping groups that will not become informative")
    columns = ("Beta", "ε", "tokens saved", "as estimated", "time saved", "stopped", "informative", "lost", "bias")
    for column in columns:
        shown.add_column(column, justify="right")
    for row in rows:
        shown.add_row(
            row["mixture"],
            "off" if row["epsilon"] is None else f"{row['epsilon']:g}",
            *(f"{row[name]:.1%}" for name in ("saved", "saved_estimate", "faster")),
            str(row["stopped"]),
            str(row["informative"]),
            f"{row['lost']:.1%}",
            f"{row['bias']:+.3f}",
        )
    return shown


def draw_plot(rows: Sequence[Mapping[str, Any]], axes: Any) -> None:
    """Draw what is lost against what is saved, a line a mixture."""
    for mixture in dict.fromkeys(row["mixture"] for row in rows):
        mine = [row for row in rows if row["mixture"] == mixture]
        points = [(100 * row["saved"], 100 * row["lost"]) for row in mine]
        axes.plot(*zip(*points, strict=True), marker="o", label=f"Beta({mixture})")
        for row, point in zip(mine[1:], points[1:], strict=True):
            axes.annotate(f"{row['epsilon']:g}", point, xytext=(3, 3), textcoords="offset points", fontsize=7)
    axes.set(xlabel="tokens saved, %", ylabel="informative groups lost, %", title="groups stopped in flight, by ε")
    axes.legend(fontsize=7)
