"""The trajectories of the rollout benchmarks: their texts, how long their tools take, and who says what."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Literal

from rollouts_ideal import Capacity, Course
from workload import LIMITS, Workload, large_tokenizer

from icrl import Agent, SamplingParams
from icrl.runtime.engines.protocol import Engine, EngineInfo
from icrl.runtime.rollout import Plan
from icrl.runtime.tools.tool import Tool, ToolPolicy
from icrl.testing import HeavyTailedTool
from icrl.tokenizer import Encoder
from icrl.trajectory import Generation, Group, Trajectory
from icrl.types import Task

Latencies = Literal["none", "tail", "lognorm"]
LONG_S = 3600.0
KEY = 24
MEMBERS = 8
SAMPLING = SamplingParams(max_tokens=1020)
"""Enough for every reply (of 12,288 two are longer than 1,000 tokens, up to 1,012); longer ones would be streamed."""


TIMES: Mapping[Latencies, Callable[[int], float]] = {
    "none": lambda number: 0.0,
    "tail": HeavyTailedTool.tail().latency_s,
    "lognorm": HeavyTailedTool.lognorm().latency_s,
}


class Scene:
    """So many distinct trajectories, with the very same tokens and latencies for whoever runs them.

    Args:
        trajectories: How many.
        kind: Distribution of the tools' latencies.
        scale: Multiplies latencies; the engine that goes with it is slower by as much.
        prompt_tokens: Tokens of a prompt.
        members: Consecutive trajectories with one prompt.
        encoder: Encodes the tools' results.
    """

    def __init__(
        self,
        trajectories: int,
        kind: Latencies = "none",
        *,
        scale: float = 1.0,
        prompt_tokens: int = 508,
        members: int = 1,
        encoder: Encoder = "huggingface",
    ) -> None:
        tokenizer = large_tokenizer(encoder=encoder)
        self.work = Workload(
            trajectories=trajectories, members=members, prompt_tokens=prompt_tokens, tokenizer=tokenizer
        )
        self.capacity = Capacity(total=40_000 / scale, each=400 / scale)
        self.latencies_s = {}
        self.courses = []
        for number, episode in enumerate(self.work.episodes):
            calls = len(episode.results)
            waits = tuple(scale * TIMES[kind](number * calls + call) for call in range(calls))
            self.latencies_s |= dict(zip(episode.results, waits, strict=True))
            self.courses.append(Course(tokens=tuple(len(r.ids) for r in episode.replies), latencies_s=waits))

    def tools(self) -> list[SlowTool]:
        """Return tools that take their time."""
        return [SlowTool(tool, self.latencies_s) for tool in self.work.tools]

    def agent(self, engine: Engine, tools: Sequence[Tool]) -> Agent:
        """Return an agent that runs the trajectories."""
        options = {"dialect": self.work.dialect, "instruction": self.work.instruction, "tokenizer": self.work.tokenizer}
        return Agent(engine, tools=tools, limits=LIMITS, **options)

    def plans(self) -> list[Plan]:
        """Return a plan for every prompt."""
        members = self.work.members
        tasks = [episode.task for episode in self.work.episodes[::members]]
        return [Plan(task=task, members=members, id=f"{i}.") for i, task in enumerate(tasks)]

    def exact(self, groups: Sequence[Group]) -> int:
        """Count the trajectories that sampled exactly the ids of an episode, each episode once."""
        expected = {tuple(tuple(reply.ids) for reply in episode.replies) for episode in self.work.episodes}
        return len(expected & {_sampled(trajectory) for group in groups for trajectory in group.trajectories})


def _sampled(trajectory: Trajectory) -> tuple[tuple[int, ...], ...]:
    return tuple(segment.ids for segment in trajectory.segments if segment.source == "policy")


@dataclass(slots=True)
class SlowTool:
    """A tool that takes as long as was drawn for what it answers."""

    inner: Tool
    latencies_s: Mapping[str, float]
    policy: ToolPolicy = field(
        default_factory=lambda: ToolPolicy(timeout_s=LONG_S, max_concurrency=1 << 20, max_queue=1 << 20)
    )

    @property
    def spec(self) -> Any:
        return self.inner.spec

    async def __call__(self, arguments: Mapping[str, Any]) -> str:
        text = await self.inner(arguments)
        await asyncio.sleep(self.latencies_s.get(text, 0.0))
        return text


class Script:
    """Knows from the ids of a request which reply comes next; one that was begun is continued.

    Members of a group ask the same at first: the first to ask gets the first member's reply, and so on.
    """

    def __init__(self, scene: Scene) -> None:
        episodes, members = scene.work.episodes, scene.work.members
        prompts = [prompt_ids_of(scene.work, episode.task) for episode in episodes[::members]]
        # Prompts begin alike, with the instruction and the tools.
        self._start = next((i for i, pair in enumerate(zip(*prompts[:2], strict=False)) if len({*pair}) > 1), 0)
        self._groups = {
            self._key(ids): (len(ids), itertools.cycle(episodes[i * members : (i + 1) * members]))
            for i, ids in enumerate(prompts)
        }
        self._begun = {tuple(episode.replies[0].ids[:KEY]): episode for episode in episodes}
        if len(self._groups) < len(prompts) or len(self._begun) < len(episodes):
            raise RuntimeError("prompts or replies do not differ early enough")
        self._opening = scene.work.tokenizer.pad_id + 1
        self._openings = prompts[0].count(self._opening)
        self._header = prompts[0][::-1].index(self._opening) + 1

    def _key(self, ids: Sequence[int]) -> tuple[int, ...]:
        return tuple(ids[self._start : self._start + KEY])

    def __call__(self, ids: Sequence[int]) -> list[int]:
        ids = [*ids]
        length, members = self._groups[self._key(ids)]
        episode = self._begun.get(tuple(ids[length : length + KEY])) or next(members)
        turn = (ids.count(self._opening) - self._openings) // 2
        begun = ids[::-1].index(self._opening) + 1 - self._header
        return [*episode.replies[turn].ids[begun:]]


def prompt_ids_of(work: Workload, task: Task) -> list[int]:
    from icrl.runtime.dialect import find_dialect

    specs = [tool.spec for tool in work.tools]
    segments = find_dialect(work.dialect).prompt(
        work.tokenizer, task.messages, tools=specs, instruction=work.instruction
    )
    return list(itertools.chain.from_iterable(segment.ids for segment in segments))


class InstantEngine:
    """Hands out the scripted replies by request id, as new objects."""

    def __init__(self, scene: Scene) -> None:
        self.tokenizer = scene.work.tokenizer
        self.info = EngineInfo(name="instant", vocab_size=self.tokenizer.vocab_size, context_limit=1_000_000)
        self._work = scene.work

    async def generate(self, ids: Sequence[int], params: SamplingParams, *, request_id: str, **_: object) -> Generation:
        trajectory, _, turn = request_id.partition("/")
        group, member = map(int, trajectory.split("."))
        return self._work.episodes[group * self._work.members + member].replies[int(turn)].generation()

    async def abort(self, request_id: str) -> None: ...

    async def aclose(self) -> None: ...


async def free_score(trajectory: Trajectory, task: Task) -> SimpleNamespace:
    """Judge nothing."""
    return SimpleNamespace(total=0.0, components={})
