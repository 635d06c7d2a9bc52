"""The thread in which the in-process engine computes, and the way to talk to it from any event loop."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from icrl.errors import EngineError, IcrlError

if TYPE_CHECKING:
    from icrl.runtime.engines.core import Core

__all__ = ["Answer", "Command", "Worker"]

Call = Callable[[], object]


class Answer:
    """A future of one event loop that the engine's thread resolves; to be created on that loop.

    Args:
        worker: Whose thread answers.
    """

    __slots__ = ("_worker", "future", "loop")

    def __init__(self, worker: Worker) -> None:
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Any] = self.loop.create_future()
        self._worker = worker

    def call(self, function: Call) -> None:
        """Call something on the event loop."""
        self._worker.post(self, function, final=False)

    def resolve(self, value: object) -> None:
        """Set the result, unless nobody waits any more."""
        self._worker.post(self, lambda: None if self.future.done() else self.future.set_result(value), final=True)

    def fail(self, error: Exception) -> None:
        """Set the exception, unless nobody waits any more."""
        self._worker.post(self, lambda: None if self.future.done() else self.future.set_exception(error), final=True)


Command = Callable[["Core", Answer], None]
"""Something to do between two steps; it sees to it that the answer is given, at once or in a later step."""


class Worker:
    """Runs an engine core in its own thread.

    Commands are carried out in order between two steps. Whatever a step sends to an event loop is delivered with one
    wake-up of that loop. If the thread dies, every open answer fails with the reason.

    Args:
        name: The engine's name, for errors.
        build: Makes the core; called in the thread.
    """

    def __init__(self, name: str, build: Callable[[], Core]) -> None:
        self._name = name
        self._build = build
        self._inbox: SimpleQueue[tuple[Command | None, Answer]] = SimpleQueue()
        self._outbox: dict[asyncio.AbstractEventLoop, list[Call]] = {}
        self._open: set[Answer] = set()
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._main, name="icrl-engine", daemon=True)
        self._thread.start()

    def send(self, command: Command | None) -> asyncio.Future[Any]:
        """Have something done between two steps; `None` finishes all requests as aborted and ends the thread."""
        answer = Answer(self)
        self._inbox.put((command, answer))
        if self._failure is not None:
            self._refuse(self._failure)
        return answer.future

    async def ask(self, function: Callable[[Core], Any]) -> Any:
        """Call a function between two steps and return its result."""
        return await self.send(lambda core, answer: answer.resolve(function(core)))

    async def close(self) -> None:
        """End the thread; open requests return as aborted."""
        with contextlib.suppress(IcrlError):
            await self.send(None)
        # The thread has nothing left to do but to return, which it cannot announce.
        while self._thread.is_alive():  # noqa: ASYNC110
            await asyncio.sleep(0)

    def post(self, answer: Answer, function: Call, *, final: bool) -> None:
        """Queue a call for the answer's event loop; outside the thread, make it at once."""
        if threading.current_thread() is not self._thread:
            answer.loop.call_soon_threadsafe(function)
            return
        self._outbox.setdefault(answer.loop, []).append(function)
        if final:
            self._open.discard(answer)

    def _flush(self) -> None:
        outbox, self._outbox = self._outbox, {}
        for loop, calls in outbox.items():
            # A closed loop has nobody left to tell.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(_call_all, loop, calls)

    def _main(self) -> None:
        reason: Exception = EngineError("the engine was closed", engine=self._name)
        try:
            core = self._build()
            while self._serve(core):
                if core.busy:
                    core.step()
                self._flush()
        except Exception as error:
            reason = error if isinstance(error, IcrlError) else _crash(error, self._name)
        finally:
            self._failure = reason
            for answer in list(self._open):
                answer.fail(reason)
            self._refuse(reason)
            self._flush()

    def _serve(self, core: Core) -> bool:
        """Carry out what has arrived, waiting for it if there is nothing to compute; `False` means to end."""
        try:
            command, answer = self._inbox.get(block=not core.busy)
            while True:
                self._open.add(answer)
                if command is None:
                    core.abort()
                    answer.resolve(None)
                    return False
                _carry_out(command, core, answer)
                command, answer = self._inbox.get_nowait()
        except Empty:
            return True

    def _refuse(self, reason: Exception) -> None:
        with contextlib.suppress(Empty):
            while True:
                command, answer = self._inbox.get_nowait()
                answer.resolve(None) if command is None else answer.fail(reason)


def _carry_out(command: Command, core: Core, answer: Answer) -> None:
    try:
        command(core, answer)
    except Exception as error:
        answer.fail(error)


def _call_all(loop: asyncio.AbstractEventLoop, calls: list[Call]) -> None:
    # One handle each: a callback that raises must not take the others with it.
    for call in calls:
        loop.call_soon(call)


def _crash(error: Exception, name: str) -> EngineError:
    failure = EngineError(f"the engine's thread failed: {type(error).__name__}: {error}", engine=name)
    failure.__cause__ = error
    return failure
