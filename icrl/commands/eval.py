"""`icrl eval MODEL`: evaluate a model on questions with known answers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table

from icrl.commands.shots import take_shots
from icrl.config import load
from icrl.errors import ConfigError, ToolError
from icrl.runtime.agent import Agent, whole_turns
from icrl.runtime.store import TrajectoryStore
from icrl.runtime.tools.tool import Tool, ToolPolicy, ToolSpec
from icrl.runtime.toolset import ToolingConfig, open_tools
from icrl.tiny.worlds import find_world
from icrl.train.data import world_tasks
from icrl.train.evaluate import evaluate
from icrl.train.metrics import Evaluation
from icrl.train.tasks import load_tasks
from icrl.trajectory import Group
from icrl.types import Demonstration, Task
from icrl.wire import encode

__all__ = ["EvalCommand", "main"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalCommand:
    """Evaluate a model on questions with known answers."""

    model: Annotated[str | None, tyro.conf.Positional] = None
    """Hugging Face name, directory, run directory, or address of a server (`http://127.0.0.1:30000`, several joined by
    commas; `openai:URL#MODEL`); the embedded base model if not given."""
    tokenizer: str | None = None
    """Directory or name of the model's tokenizer, where a server's own is not on this machine."""
    world: str = "search"
    """Embedded world whose held-out questions and demonstrations are taken: `search`, `code` or `mixed`."""
    tasks: Path | None = None
    """JSONL of `{question, answers}`; those of `--world` if not given."""
    shots: int = 0
    """Demonstrations in the prompt."""
    demos: Path | None = None
    """YAML or JSONL of demonstrations; those of `--world` if not given."""
    limit: int = 0
    """Take only the first so many tasks; 0 takes all."""
    temperature: float = 0.0
    """Sampling temperature; 0 is greedy."""
    samples: int = 1
    """Trajectories a task."""
    seed: int = 0
    """Random streams, where the temperature is not 0."""
    no_tools: bool = False
    """Answer every call with an error: what does the model know without its tools?"""
    tooling: ToolingConfig = field(default_factory=ToolingConfig)
    """A cache of the tools' answers, or a journal of their calls."""
    json: bool = False
    """Print JSON instead of a table."""
    trajectories: Path | None = None
    """Also write the trajectories to this JSONL file."""

    def __post_init__(self) -> None:
        if self.limit < 0:
            raise ConfigError(f"limit: must be >= 0 (0 takes all), not {self.limit}")
        if self.samples < 1:
            raise ConfigError(f"samples: must be >= 1, not {self.samples}")


def main(argv: Sequence[str]) -> None:
    """Evaluate and print."""
    command = load(EvalCommand, argv, prog="icrl eval", description="Evaluate a model on questions.")
    world = find_world(command.world)
    tasks = world_tasks(world.held_out) if command.tasks is None else load_tasks(command.tasks)
    tasks = tasks[: command.limit or None]
    demonstrations = take_shots(command.demos or world, command.shots)
    path = command.trajectories
    # Opened first: a path that cannot be written shows before the work, not after it.
    with contextlib.nullcontext() if path is None else TrajectoryStore(path, keep_bytes=0) as store:
        result, groups = asyncio.run(_evaluate(command, tasks, demonstrations))
        if store is not None:
            store.append(t for group in groups for t in group.trajectories)
    if command.json:
        print(encode(result).decode())  # noqa: T201 - plain JSON, without rich's wrapping
    else:
        Console().print(_table(command, result))


async def _evaluate(
    command: EvalCommand, tasks: Sequence[Task], demonstrations: Sequence[Demonstration]
) -> tuple[Evaluation, list[Group]]:
    async with _opened(command) as agent:
        return await evaluate(
            agent,
            tasks,
            demonstrations=demonstrations,
            sampling=whole_turns(command.temperature),
            samples=command.samples,
            seed=command.seed,
        )


@contextlib.asynccontextmanager
async def _opened(command: EvalCommand) -> AsyncIterator[Agent]:
    # The base was trained with no tool yet, so a world brings its own.
    tools: Sequence[Tool | str] | None = find_world(command.world).tools if command.model is None else None
    own = [] if command.no_tools else tools
    tooling = None if command.no_tools else command.tooling
    async with Agent(command.model, tokenizer=command.tokenizer, tools=own, tooling=tooling) as agent:
        if not command.no_tools:
            yield agent
            return
        model = agent.model
        settings = model.settings
        async with Agent(
            model.engine,
            tokenizer=model.tokenizer,
            dialect=model.dialect,
            instruction=settings.instruction,
            limits=settings.limits,
            tools=[SwitchedOff(tool) for tool in await open_tools(tools or settings.tools, settings)],
            tooling=command.tooling,
        ) as without:
            yield without


@dataclass(frozen=True, slots=True)
class SwitchedOff:
    """A tool that declares itself like another and answers every call with an error."""

    tool: Tool
    """The tool whose place it takes."""

    @property
    def spec(self) -> ToolSpec:
        """The other tool's declaration."""
        return self.tool.spec

    @property
    def policy(self) -> ToolPolicy:
        """The other tool's policy; a refusal is not worth keeping."""
        return replace(self.tool.policy, repeatable=False)

    async def __call__(self, arguments: Mapping[str, Any]) -> str:
        """Refuse."""
        raise ToolError("the tool is switched off")


def _table(command: EvalCommand, result: Evaluation) -> Table:
    table = Table(title=f"{command.model or 'embedded base'}, {result.shots}-shot, {result.tasks} tasks")
    table.add_column("measure")
    table.add_column("value", justify="right")
    table.add_column("95 % interval", justify="right")
    for name, value, interval in (
        ("exact match", result.em, result.em_interval),
        ("F1", result.f1, result.f1_interval),
        ("whole format", result.format_rate, None),
        ("valid call", result.valid_call_rate, None),
    ):
        table.add_row(name, f"{value:.3f}", f"{interval[0]:.3f} - {interval[1]:.3f}" if interval else "")
    for world, value in result.em_by_world.items():
        table.add_row(f"exact match, {world}", f"{value:.3f}", "")
    table.add_row("calls a trajectory", f"{result.calls:.2f}", "")
    table.add_row("response tokens", f"{result.response_tokens:.1f}", "")
    for reason, count in result.stop_reasons.items():
        table.add_row(f"stopped: {reason}", str(count), "")
    table.add_row("seconds", f"{result.wall_s:.1f}", "")
    return table
