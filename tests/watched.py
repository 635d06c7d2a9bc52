"""An engine that remembers what it said, and the questions to ask once a run is over."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from icrl.testing import ScriptedEngine
from icrl.trajectory import Generation, Trajectory

__all__ = ["Watched", "idle", "timeless", "tool_call", "until"]


class Watched(ScriptedEngine):
    """A scripted engine that keeps its generations."""

    def __init__(self, replies: Any, **options: Any) -> None:
        super().__init__(replies, **options)
        self.said: list[Generation] = []

    async def generate(self, *args: Any, **options: Any) -> Generation:
        generation = await super().generate(*args, **options)
        self.said.append(generation)
        return generation


def timeless(trajectory: Trajectory) -> Trajectory:
    """Forget the id and how long things took, which differ between two equal runs."""
    error = trajectory.error
    if error is not None:
        error = replace(error, message=error.message.replace(trajectory.id, "its id"))
    segments = tuple(
        replace(s, result=None if s.result is None else replace(s.result, wall_s=0.0)) for s in trajectory.segments
    )
    turns = tuple(replace(turn, generate_s=0.0) for turn in trajectory.turns)
    return replace(trajectory, id="", segments=segments, turns=turns, wall_s=0.0, error=error)


async def until(condition: Callable[[], Any]) -> None:
    """Let the loop turn until something has happened."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - what is waited for sets no event
            await asyncio.sleep(0.001)


def idle(engine: ScriptedEngine) -> bool:
    """Whether nothing is left on this loop but the caller."""
    return asyncio.all_tasks() == {asyncio.current_task()} and not engine.live


def tool_call(name: str, **arguments: Any) -> str:
    """Write a call in the Hermes dialect."""
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"
