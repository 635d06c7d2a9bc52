"""`icrl run QUESTION`: one run, in colour, as it happens."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.text import Text

from icrl.commands.shots import take_shots
from icrl.config import load
from icrl.events import Event, RunFinished, RunStarted, TextDelta, ToolOutput
from icrl.runtime.agent import Agent, whole_turns
from icrl.tiny import DEMONSTRATIONS
from icrl.trajectory import Segment, Trajectory
from icrl.types import SamplingParams
from icrl.wire import encode

__all__ = ["RunCommand", "main"]

STYLES = {
    "system": "dim",
    "demo": "dim blue",
    "history": "dim",
    "query": "bold",
    "text": "green",
    "tool_result": "cyan",
    "notice": "yellow",
    "separator": "dim",
}
"""How each role is shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunCommand:
    """Answer a question and show every step."""

    question: Annotated[str, tyro.conf.Positional]
    """What to ask."""
    model: str | None = None
    """Hugging Face name, directory, run directory, or address of a server (`http://127.0.0.1:30000`, several joined by
    commas; `openai:URL#MODEL`); the embedded base model if not given."""
    tokenizer: str | None = None
    """Directory or name of the model's tokenizer, where a server's own is not on this machine."""
    shots: int = 0
    """Demonstrations to show."""
    demos: Path = DEMONSTRATIONS
    """YAML or JSONL of demonstrations; the embedded world's by default."""
    temperature: float = 0.0
    """Sampling temperature; 0 is greedy."""
    max_tokens: int | None = None
    """Tokens that one turn may sample; all that the model's limits leave if not given."""
    seed: int = 0
    """Random stream, where the temperature is not 0."""
    json: bool = False
    """Print the trajectory as JSON instead."""


def main(argv: Sequence[str]) -> None:
    """Run the question."""
    command = load(RunCommand, argv, prog="icrl run", description="Answer a question and show every step.")
    agent = Agent(
        command.model,
        tokenizer=command.tokenizer,
        demonstrations=take_shots(command.demos, command.shots),
        sampling=_sampling(command),
    )
    asyncio.run(_run(agent, command, Console(highlight=False)))


def _sampling(command: RunCommand) -> SamplingParams:
    if command.max_tokens is None:
        return whole_turns(command.temperature)
    return SamplingParams(temperature=command.temperature, max_tokens=command.max_tokens)


async def _run(agent: Agent, command: RunCommand, console: Console) -> None:
    async with agent.stream(command.question, seed=command.seed) as events:
        async for event in events:
            if not command.json:
                _show(console, event)
            elif isinstance(event, RunFinished):
                print(encode(event.trajectory).decode())  # noqa: T201 - plain JSON, without rich's wrapping


def _show(console: Console, event: Event) -> None:
    match event:
        case RunStarted(segments=segments):
            _write(console, segments)
        case TextDelta(text=text):
            console.print(Text(text, STYLES["text"]), end="", soft_wrap=True)
        case ToolOutput(segments=segments):
            _write(console, segments)
        case RunFinished(trajectory=trajectory):
            console.print(_summary(trajectory))


def _write(console: Console, segments: Sequence[Segment]) -> None:
    for segment in segments:
        console.print(Text(segment.text, STYLES[segment.role]), end="", soft_wrap=True)


def _summary(trajectory: Trajectory) -> Text:
    answer = trajectory.answer if trajectory.answer is not None else f"none ({trajectory.stop_reason})"
    cost = f"{trajectory.sampled_tokens} tokens sampled, {len(trajectory.results)} tool calls"
    lines = [("\n\nanswer: ", "bold"), (answer, "bold green"), (f"\n{cost}, {trajectory.wall_s:.2f} s", "dim")]
    if trajectory.error is not None:
        lines.append((f"\n{trajectory.error.kind}: {trajectory.error.message}", "red"))
    return Text.assemble(*lines)
