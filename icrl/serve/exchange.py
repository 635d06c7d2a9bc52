"""Runs on behalf of one request: told as they happen, ended when nobody listens any more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from types import TracebackType
from typing import NamedTuple, Self

from icrl.events import Event
from icrl.runtime.run import Run
from icrl.serve.ask import Ask
from icrl.serve.narration import Heard, Narrator
from icrl.serve.service import Lease
from icrl.serve.stop_words import StopWords
from icrl.serve.stream import Mailbox
from icrl.serve.usage import Usage, count
from icrl.trajectory import StopReason, Trajectory

__all__ = ["Exchange", "Told"]


class Told(NamedTuple):
    """Something heard of one of a request's runs."""

    choice: int
    """Which run, from 0."""
    heard: Heard
    """What."""


class Exchange:
    """The runs of one request; leaving the block cancels those that still go on, with their tools.

    Args:
        lease: The right to use the agent.
        ask: What the client wants.
        choices: How many runs on the same prompt.

    Raises:
        Problem: The conversation does not fit the model.
    """

    def __init__(self, lease: Lease, ask: Ask, *, choices: int = 1) -> None:
        self._lease = lease
        self._mailbox: Mailbox[Told] = Mailbox()
        self._tasks: list[asyncio.Task[Trajectory]] = []
        self.cut: set[int] = set()
        """Choices that ended at a stop string."""
        self.narrators: list[Narrator] = []
        """Who tells of each run."""
        self.runs: list[Run] = [self._prepare(ask, choice) for choice in range(choices)]
        """The runs, one a choice."""

    def _prepare(self, ask: Ask, choice: int) -> Run:
        model = self._lease.agent.model
        narrator = Narrator(model.dialect, model.tokenizer, self._lease.offer(ask).specs)
        self.narrators.append(narrator)
        words = StopWords(ask.stop)

        def emit(event: Event) -> None:
            for heard in narrator.feed(event):
                for shown in _until(words, heard):
                    self._mailbox.put(Told(choice, shown))
            if words.has_stopped and choice not in self.cut:
                self.cut.add(choice)
                run.stop(StopReason.ABORTED)

        # Every choice has its own stream; the first is the one that a request for a single choice gets.
        run = self._lease.prepare(replace(ask, seed=None if ask.seed is None else ask.seed + choice), emit)
        return run

    async def __aenter__(self) -> Self:
        """Start the runs."""
        self._tasks = [asyncio.create_task(self._lease.execute(run)) for run in self.runs]
        asyncio.gather(*self._tasks, return_exceptions=True).add_done_callback(lambda _: self._mailbox.close())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End what still runs."""
        for task in self._tasks:
            task.cancel()
        # Unlike `gather`, this does not cancel them a second time where it is cancelled itself.
        await asyncio.wait(self._tasks)

    def told(self, *, heartbeat_s: float) -> AsyncIterator[list[Told]]:
        """Yield what is heard, in order, until all runs are over; an empty list after a silence."""
        return self._mailbox.batches(heartbeat_s=heartbeat_s)

    async def trajectories(self) -> list[Trajectory]:
        """Wait for the runs and return what became of them, in the order of the choices."""
        return list(await asyncio.gather(*self._tasks))

    def usage(self, trajectories: Sequence[Trajectory]) -> Usage:
        """Count the tokens of the finished runs."""
        tokenizer = self._lease.agent.model.tokenizer
        return count(trajectories, [narrator.spans for narrator in self.narrators], tokenizer)


def _until(words: StopWords, heard: Heard) -> list[Heard]:
    """Let the answer's words through up to a stop string; what was held back comes before the end."""
    if heard.kind == "said":
        said = words.feed(heard.text)
        if said == heard.text:
            return [heard]
        return [heard._replace(text=said)] if said else []
    held = words.close() if heard.kind in ("handed_over", "stopped") else ""
    return [Heard("said", held, heard.turn), heard] if held else [heard]
