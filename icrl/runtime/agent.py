"""The agent: a model, its tools and its prompt, ready to work on queries.

An agent does no I/O when it is built. The first run opens what it needs; leaving `async with`, or finishing a bare
run, closes it again.
"""

from __future__ import annotations

import asyncio
import secrets
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from icrl.errors import ConfigError
from icrl.events import Event
from icrl.runtime.dialect import Dialect, find_dialect
from icrl.runtime.engines.protocol import Engine
from icrl.runtime.model import Model, open_model
from icrl.runtime.run import Run
from icrl.runtime.tools.offer import Offer
from icrl.runtime.toolset import ToolingConfig, Tools
from icrl.tokenizer import Tokenizer
from icrl.trajectory import Segment, Trajectory
from icrl.types import Demonstration, Limits, Message, SamplingParams, Task

__all__ = ["Agent", "Result", "whole_turns"]

UNBOUNDED = 2**31 - 1

Query = str | Sequence[Message] | Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a run came to."""

    answer: str | None
    """The final answer, or `None` where the model gave none; `trajectory.stop_reason` says why."""
    trajectory: Trajectory
    """Everything that happened, token by token."""


class Agent:
    """Runs queries through the loop of generating, calling tools and observing.

    Args:
        model: A Hugging Face name or directory, a run directory of `icrl.train`, the address of an SGLang server
            (`http://127.0.0.1:30000`; several are joined by commas), `openai:URL#MODEL`, or an `Engine`; the embedded
            model if not given.
        tools: What the model may call: tools, names of tools such as `"search"`, or a `Toolbox`; by default what the
            model was trained with.
        index: The search index, a directory or an address; by default the one the model was trained with.
        tooling: A cache of the tools' answers, or a journal of their calls; not for a `Toolbox`, which has its own.
        dialect: `"xml"`, `"hermes"`, `"fence"` or a `Dialect`; by default the one the model was trained with.
        instruction: Replaces the dialect's instruction.
        demonstrations: Worked examples to show in every prompt.
        limits: When a run has to end; or what makes that of the model's own limits.
        sampling: How to sample; `seed` is ignored, as every run gets its own. By default a turn may take all tokens
            that the limits leave.
        tokenizer: A tokenizer, its directory or its name; needed only where `model` is an `Engine` without a
            `tokenizer` attribute, or a server whose tokenizer is not on this machine.

    Raises:
        ConfigError: An argument does not fit (at construction), or the model cannot be opened (at the first run).

    Example:
        >>> import asyncio
        >>> from icrl.testing import ByteTokenizer, ScriptedEngine
        >>> engine = ScriptedEngine(["<answer> 42 </answer>"], tokenizer=ByteTokenizer())
        >>> asyncio.run(Agent(engine).run("What is six times seven?")).answer
        '42'
    """

    def __init__(
        self,
        model: str | Path | Engine | None = None,
        *,
        tools: Tools | None = None,
        index: str | None = None,
        tooling: ToolingConfig | None = None,
        dialect: str | Dialect | None = None,
        instruction: str | None = None,
        demonstrations: Sequence[Demonstration] = (),
        limits: Limits | Callable[[Limits], Limits] | None = None,
        sampling: SamplingParams | None = None,
        tokenizer: Tokenizer | str | Path | None = None,
    ) -> None:
        self._source = model
        self._dialect = find_dialect(dialect) if isinstance(dialect, str) else dialect
        self._instruction = instruction
        self._limits = limits
        self._tools = tools
        self._index = index
        self._tooling = tooling
        self._tokenizer = tokenizer
        self._demonstrations = tuple(demonstrations)
        self._sampling = sampling or whole_turns()
        self._users = 0
        self._opening: asyncio.Task[Model] | None = None

    async def __aenter__(self) -> Self:
        """Open the model and its tools; nested and concurrent uses share them."""
        self._users += 1
        if self._opening is None:
            self._opening = asyncio.create_task(self._open())
        try:
            await asyncio.shield(self._opening)
        except BaseException:
            await self._release()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close everything that this agent opened, once its last user leaves."""
        await self._release()

    async def _open(self) -> Model:
        return await open_model(
            self._source,
            dialect=self._dialect,
            instruction=self._instruction,
            limits=self._limits,
            tools=self._tools,
            index=self._index,
            tooling=self._tooling,
            tokenizer=self._tokenizer,
        )

    async def _release(self) -> None:
        self._users -= 1
        opening = self._opening
        if self._users or opening is None:
            return
        self._opening = None
        opening.cancel()
        (model,) = await asyncio.gather(opening, return_exceptions=True)
        if isinstance(model, Model):
            await model.aclose()

    @property
    def model(self) -> Model:
        """The opened engine, tokenizer, dialect and tools.

        Raises:
            ConfigError: The agent is not open.
        """
        if self._opening is None or not self._opening.done():
            raise ConfigError("Agent: not open; use `async with agent:` before asking for its model")
        return self._opening.result()

    async def run(self, query: Query, *, seed: int | None = None, trajectory_id: str | None = None) -> Result:
        """Work on a query until it is answered or a limit is reached.

        Args:
            query: A question, a conversation that ends in a user message, or a `Task`.
            seed: Makes the run repeatable; random if not given.
            trajectory_id: Names the run, which replaying a journal needs; a fresh name if not given.

        Raises:
            ConfigError: The model cannot be opened.

        Example:
            >>> import asyncio
            >>> from icrl.testing import ByteTokenizer, ScriptedEngine
            >>> engine = ScriptedEngine(["<answer> yes </answer>"], tokenizer=ByteTokenizer())
            >>> asyncio.run(Agent(engine).run("Is it so?")).trajectory.stop_reason
            <StopReason.ANSWER: 'answer'>
        """
        async with self:
            trajectory = await self.start(query, seed=seed, trajectory_id=trajectory_id).execute()
        return Result(answer=trajectory.answer, trajectory=trajectory)

    @asynccontextmanager
    async def stream(self, query: Query, *, seed: int | None = None) -> AsyncIterator[AsyncIterator[Event]]:
        """Work on a query and yield its events as they happen; leaving the block cancels what still runs.

        Example:
            >>> import asyncio
            >>> from icrl.testing import ByteTokenizer, ScriptedEngine
            >>> async def kinds() -> list[str]:
            ...     agent = Agent(ScriptedEngine(["<answer> 1 </answer>"], tokenizer=ByteTokenizer()))
            ...     async with agent.stream("one?") as events:
            ...         return [event.kind async for event in events if event.kind != "text_delta"]
            >>> asyncio.run(kinds())
            ['run_started', 'turn_finished', 'run_stopped', 'run_finished']
        """
        async with self:
            queue: asyncio.Queue[Event | None] = asyncio.Queue()
            running = asyncio.create_task(self.start(query, seed=seed, emit=queue.put_nowait).execute())
            running.add_done_callback(lambda _: queue.put_nowait(None))
            try:
                yield _events(queue, running)
            finally:
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)

    def start(
        self,
        query: Query,
        *,
        seed: int | None = None,
        emit: Callable[[Event], None] | None = None,
        sampling: SamplingParams | None = None,
        limits: Limits | None = None,
        trajectory_id: str | None = None,
        offer: Offer | None = None,
    ) -> Run:
        """Prepare a run of an open agent; `Run.execute` starts it, `Run.stop` ends it.

        Args:
            query: A question, a conversation that ends in a user message or in the results of calls, or a `Task`.
            seed: Makes the run repeatable; random if not given.
            emit: Hears every event.
            sampling: Replaces the agent's own for this run; its seed is ignored.
            limits: Replaces the model's for this run.
            trajectory_id: Names the run; a fresh name if not given.
            offer: What this run may call, if not just the model's tools. Demonstrations that call anything else are
                not shown then.

        Raises:
            ConfigError: The agent is not open, or the prompt cannot be rendered.
        """
        task = query if isinstance(query, Task) else Task(query=query if isinstance(query, str) else tuple(query))
        shown = self._demonstrations if offer is None else _within(self._demonstrations, offer)
        return self.prepare(
            task,
            self.model.prompt(task.messages, shown, offer),
            shots=len(shown),
            sampling=replace(sampling or self._sampling, seed=secrets.randbits(63) if seed is None else seed),
            trajectory_id=trajectory_id or uuid.uuid4().hex,
            emit=emit,
            limits=limits,
            offer=offer,
        )

    def prepare(
        self,
        task: Task,
        prompt: tuple[Segment, ...],
        *,
        shots: int,
        sampling: SamplingParams,
        trajectory_id: str,
        emit: Callable[[Event], None] | None = None,
        limits: Limits | None = None,
        offer: Offer | None = None,
    ) -> Run:
        """Prepare a run on a prompt that is rendered already; members of a group share one.

        Raises:
            ConfigError: The agent is not open.
        """
        model = self.model
        return Run(
            id=trajectory_id,
            task=task,
            prompt=prompt,
            shots=shots,
            engine=model.engine,
            tokenizer=model.tokenizer,
            dialect=model.dialect,
            toolbox=model.toolbox,
            offer=offer or model.offer,
            limits=limits or model.limits,
            sampling=sampling,
            emit=emit,
        )


def whole_turns(temperature: float = 1.0) -> SamplingParams:
    """Return how to sample where nobody bounds a turn: it may take all tokens that the limits leave, as in training."""
    return SamplingParams(temperature=temperature, max_tokens=UNBOUNDED)


def _within(demonstrations: Sequence[Demonstration], offer: Offer) -> tuple[Demonstration, ...]:
    return tuple(shot for shot in demonstrations if all(step.tool in offer.names for step in shot.steps))


async def _events(queue: asyncio.Queue[Event | None], running: asyncio.Task[Any]) -> AsyncIterator[Event]:
    while (event := await queue.get()) is not None:
        yield event
    await running
