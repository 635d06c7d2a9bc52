"""One trajectory in flight: the loop that everything else in icrl is built around.

    prompt → generate → parse → call tools → observe → generate → … → stop

The loop owns no resources. It is given an engine, a tokenizer, a dialect and tools, tells what happens as events,
and records them; the trajectory is what the recording holds at the end.

The hot path. A turn that samples 159 tokens and reads a result of 275, with a vocabulary of 150,000 entries and an
engine and tools that answer at once, takes this much CPU, in µs a turn; it does not grow with the history:

    encoding the result        35-45   with either encoder; 190-290 where words are not remembered (`WordMemo`)
    the rest of observing         15   escaping, wrapping, the segment
    reading the turn              25   decoding (8), parsing (7), locating the call
    recording and cutting         22   ids and logprobs in flight are packed: 24 KiB a waiting trajectory, not 52
    the tool's desk               14   a task with a deadline
    rendering the prompt          13   one for eight trajectories of three turns
    tasks, timers, collection  60-90   the event loop

The ids are given to the engine as the recording's own growing buffer, nothing is encoded twice, and a long result is
encoded in a thread, so that it holds up nobody else (`OFF_LOOP_CHARACTERS`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from icrl.errors import EngineError, SandboxError
from icrl.events import (
    CallFinished,
    CallStarted,
    Event,
    Recording,
    RunFinished,
    RunStarted,
    RunStopped,
    TextDelta,
    ToolOutput,
    TurnFinished,
)
from icrl.runtime.dialect import Dialect, Reply
from icrl.runtime.engines.protocol import Engine
from icrl.runtime.tools.offer import Offer
from icrl.runtime.tools.tool import ToolSpec
from icrl.runtime.tools.toolbox import Toolbox
from icrl.seeds import seed_for
from icrl.tokenizer import TextStream, Tokenizer
from icrl.trajectory import Failure, FinishReason, Generation, Segment, StopReason, Trajectory, Turn, shared_prefix
from icrl.types import Limits, SamplingParams, Task, ToolCall, ToolResult

__all__ = ["Run", "Wait"]

ABORT_GRACE_S = 5.0
"""How long an engine may take to hand over its partial result after an abort."""

OFF_LOOP_CHARACTERS = 8192
"""Results that are longer together are encoded in a thread: where words are not remembered, that is 2 to 3 ms."""

Emit = Callable[[Event], None]


@dataclass(frozen=True, slots=True)
class Wait:
    """What a run waits for."""

    what: str
    """`engine` or `tool NAME`."""
    since: float
    """When it began to, on the clock of `time.monotonic`."""


@dataclass(slots=True, kw_only=True, eq=False)
class Run:
    """Works on one task until something stops it."""

    id: str
    """Trajectory id; also the session of engine and tools."""
    task: Task
    """What is asked."""
    prompt: tuple[Segment, ...]
    """The prompt, rendered by the dialect."""
    shots: int
    """Demonstrations in the prompt."""
    engine: Engine
    """Samples the tokens."""
    tokenizer: Tokenizer
    """Encodes observations, decodes samples."""
    dialect: Dialect
    """Finds calls and answers, renders observations."""
    toolbox: Toolbox
    """Runs the calls."""
    offer: Offer
    """What may be called, and by whom it is run."""
    limits: Limits
    """When to stop."""
    sampling: SamplingParams
    """How to sample; `max_tokens` bounds one turn."""
    emit: Emit | None = None
    """Hears every event; without it no text deltas are made."""
    recording: Recording = field(default_factory=Recording)
    """What happened so far."""
    _stop_reason: StopReason | None = None
    _failure: Failure | None = None
    _request: str | None = None
    _calling: list[asyncio.Task[ToolResult]] = field(default_factory=list)
    _aborting: list[asyncio.Task[None]] = field(default_factory=list)
    _fence: asyncio.Timeout | None = None
    _deadline: float = 0.0
    _waits: Wait | None = None
    _specs: tuple[ToolSpec, ...] = ()
    _names: tuple[str, ...] = ()
    _prompt_length: int = 0
    _shared_prefix: int = 0
    _sampled: int = 0
    _own_calls: int = 0

    def __post_init__(self) -> None:
        self._specs, self._names = self.offer.specs, self.offer.names
        self._prompt_length = sum(len(segment.ids) for segment in self.prompt)
        self._shared_prefix = shared_prefix(self.prompt)

    async def execute(self) -> Trajectory:
        """Run to the end and return the trajectory; infrastructure failures are recorded on it, not raised."""
        started = time.monotonic()
        self._deadline = started + self.limits.deadline_s
        timer = asyncio.get_running_loop().call_later(self.limits.deadline_s, self.stop, StopReason.DEADLINE)
        self._tell(RunStarted(trajectory_id=self.id, task=self.task, segments=self.prompt, shots=self.shots))
        answer: str | None = None
        error: Failure | None = None
        try:
            reason, answer = await self._converse()
            error = self._failure if reason.failed else None
        except (EngineError, SandboxError) as failure:
            reason, error = StopReason.ERROR, Failure(kind=type(failure).__name__, message=str(failure))
        finally:
            timer.cancel()
            try:
                if self._aborting:
                    await _reap(self._aborting)
            finally:
                await self.toolbox.end(self.id)
        wall_s = time.monotonic() - started
        self._tell(RunStopped(stop_reason=reason, answer=answer, wall_s=wall_s, error=error))
        trajectory = self.recording.trajectory()
        self._tell(RunFinished(trajectory=trajectory))
        return trajectory

    @property
    def waits(self) -> Wait | None:
        """What it waits for now; `None` while it has not started, or computes."""
        return self._waits

    def stop(self, reason: StopReason = StopReason.ABORTED, error: Failure | None = None) -> None:
        """End the run with what it has; the pending engine call returns its partial, pending tools are cancelled.

        Args:
            reason: Why.
            error: What failed, where `reason.failed`.
        """
        if self._stop_reason is not None:
            return
        self._stop_reason, self._failure = reason, error
        if self._fence is not None:
            loop = asyncio.get_running_loop()
            self._fence.reschedule(loop.time() + (ABORT_GRACE_S if self._request is not None else 0.0))
            if self._request is not None:
                self._aborting.append(loop.create_task(self._abort(self._request)))
        for call in self._calling:
            call.cancel()

    async def _abort(self, request_id: str) -> None:
        # An engine that cannot abort is not waited for either: the fence ends the turn.
        with suppress(EngineError):
            await self.engine.abort(request_id)

    async def _converse(self) -> tuple[StopReason, str | None]:
        """Alternate between sampling and tools until there is a reason to stop."""
        while True:
            room = self._room()
            if self._stop_reason is not None or room < 1:
                return self._stop_reason or self._exhausted(), None
            finish_reason, reply = await self._sample(room)
            own = tuple(call for call in reply.calls if not self.offer.hands_over(call))
            self._own_calls += len(own)
            handed_over = len(own) < len(reply.calls)
            ended = self._ended(finish_reason, reply, handed_over)
            if ended is not None:
                return ended, reply.answer if ended is StopReason.ANSWER else None
            if handed_over:
                return await self._hand_over(own), None
            if not await self._observe(own):
                return self._stop_reason or self._exhausted(), None

    def _room(self) -> int:
        """Response tokens that may still be added."""
        used = len(self.recording.ids)
        return min(self._prompt_length + self.limits.max_tokens, self.engine.info.context_limit) - used

    def _exhausted(self) -> StopReason:
        """Name the bound that is nearer."""
        wanted = self._prompt_length + self.limits.max_tokens
        return StopReason.MAX_TOKENS if wanted <= self.engine.info.context_limit else StopReason.CONTEXT_LIMIT

    async def _sample(self, room: int) -> tuple[FinishReason, Reply]:
        """Make one engine call and record it as a turn; its tokens are in the recording then, and nowhere else."""
        index = self.recording.turns
        prompt_tokens = len(self.recording.ids)
        generation = await self._generate(index, room)
        reply = self.dialect.parse(self.tokenizer, generation.ids, tools=self._specs, turn=index)
        self._sampled = len(generation.ids)
        turn = Turn(
            index=index,
            finish_reason=generation.finish_reason,
            prompt_tokens=prompt_tokens,
            sampled_tokens=len(generation.ids),
            cached_tokens=generation.cached_tokens,
            generate_s=generation.wall_s,
        )
        segment = Segment(
            source="policy",
            role="text",
            ids=generation.ids,
            text=reply.text,
            turn=index,
            logprobs=generation.logprobs,
            versions=generation.versions,
            calls=reply.calls,
        )
        self._tell(TurnFinished(turn=turn, segment=segment))
        return generation.finish_reason, reply

    async def _generate(self, index: int, room: int) -> Generation:
        params = replace(
            self.sampling,
            max_tokens=min(room, self.sampling.max_tokens),
            stop=self.sampling.stop + self.dialect.stop(self._specs),
            # A turn has its own stream: positions start again at 0 in every engine call.
            seed=seed_for(self.sampling.seed, index),
        )
        self._request = f"{self.id}/{index}"
        self._waits = Wait("engine", time.monotonic())
        self._fence = fence = asyncio.timeout(None)
        try:
            # An aborted request returns its partial; the fence, which `stop` sets, is for engines that hang.
            async with fence:
                return await self.engine.generate(
                    self.recording.ids,
                    params,
                    request_id=self._request,
                    session=self.id,
                    shared_prefix=self._shared_prefix,
                    on_delta=self._deltas(index, self.emit) if self.emit is not None else None,
                )
        except TimeoutError as error:
            if not fence.expired():
                raise
            raise EngineError("did not answer its abort", engine=self.engine.info.name) from error
        finally:
            self._request = self._waits = self._fence = None

    def _deltas(self, turn: int, emit: Emit) -> Callable[[Sequence[int]], None]:
        stream = TextStream(self.tokenizer)

        def on_delta(ids: Sequence[int]) -> None:
            text = stream.feed(ids)
            if text:
                emit(TextDelta(turn=turn, text=text))  # which is no part of the record

        return on_delta

    def _ended(self, finish_reason: FinishReason, reply: Reply, handed_over: bool) -> StopReason | None:
        """Say whether the turn ends the run, before any tool is called.

        A run that hands calls over ends with that turn, so it needs no room and no further turn.
        """
        if self._stop_reason is not None:
            return self._stop_reason
        if finish_reason == "abort":
            return StopReason.ABORTED
        if reply.calls:
            return self._too_many(handed_over) if handed_over or self._room() > 0 else self._exhausted()
        if finish_reason == "length":  # whatever looks like an answer was cut off
            return StopReason.MAX_TOKENS if self._room() > 0 else self._exhausted()
        return StopReason.END_OF_TURN if reply.answer is None else StopReason.ANSWER

    def _too_many(self, handed_over: bool) -> StopReason | None:
        if self._own_calls > self.limits.max_tool_calls:
            return StopReason.MAX_TOOL_CALLS
        return StopReason.MAX_TURNS if self.recording.turns >= self.limits.max_turns and not handed_over else None

    async def _hand_over(self, own: tuple[ToolCall, ...]) -> StopReason:
        """Run the other calls of a turn that calls for whoever asked, so that he can go on with all results.

        These results are in the trajectory without tokens, as the model has not read them.
        """
        segments = await self._answered(own, self.limits.max_observation_tokens) if own else ()
        if self._stop_reason is not None:
            return self._stop_reason
        unread = tuple(replace(s, ids=(), text="") for s in segments if s.result is not None)
        if unread:
            self._tell(ToolOutput(segments=unread))
        return StopReason.CLIENT_CALL

    async def _observe(self, calls: tuple[ToolCall, ...]) -> bool:
        """Run the calls and append what they answered; `False` when stopped or out of room."""
        segments = await self._answered(calls, min(self.limits.max_observation_tokens, self._room()))
        if self._stop_reason is not None or sum(len(segment.ids) for segment in segments) >= self._room():
            return False
        self._tell(ToolOutput(segments=segments))
        return True

    async def _answered(self, calls: tuple[ToolCall, ...], max_tokens: int) -> tuple[Segment, ...]:
        """Run the calls and render what they answered; nothing when stopped."""
        self._waits = Wait(f"tool {', '.join(call.name for call in calls)}", time.monotonic())
        try:
            results = await (self._one(calls[0]) if len(calls) == 1 else self._all(calls))
        finally:
            self._waits = None
        if self._stop_reason is not None:
            return ()
        observe = partial(
            self.dialect.observe,
            self.tokenizer,
            results,
            sampled=self.recording.ids[len(self.recording.ids) - self._sampled :],
            turn=self.recording.turns - 1,
            max_tokens=max_tokens,
        )
        long = sum(len(result.text) for result in results) > OFF_LOOP_CHARACTERS
        return await asyncio.to_thread(observe) if long else observe()

    async def _one(self, call: ToolCall) -> list[ToolResult]:
        """Run a turn's only call, without a task of its own; nothing when `stop` ends it."""
        self._fence = fence = asyncio.timeout(None)
        try:
            async with fence:
                return [await self._call(call)]
        except TimeoutError:
            if not fence.expired():
                raise
            return []
        finally:
            self._fence = None

    async def _all(self, calls: tuple[ToolCall, ...]) -> list[ToolResult]:
        self._calling = [asyncio.create_task(self._call(call)) for call in calls]
        try:
            await asyncio.wait(self._calling, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            await _reap(self._calling)
        ended, self._calling = self._calling, []
        return _results(ended)

    async def _call(self, call: ToolCall) -> ToolResult:
        self._tell(CallStarted(call=call))
        deadline_s = self._deadline - time.monotonic()
        result = await self.toolbox.run(call, deadline_s=deadline_s, session=self.id, offered=self._names)
        self._tell(CallFinished(call=call, result=result))
        return result

    def _tell(self, event: Event) -> None:
        self.recording.apply(event)
        if self.emit is not None:
            self.emit(event)


def _results(tasks: Iterable[asyncio.Task[ToolResult]]) -> list[ToolResult]:
    """Return what ended calls answered; raise what broke one of them, even where others were cancelled for it."""
    ended = [task for task in tasks if not task.cancelled()]
    for error in [task.exception() for task in ended]:
        if error is not None:
            raise error
    return [task.result() for task in ended]


async def _reap(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel what still runs and wait until it is gone."""
    pending = [task for task in tasks if not task.done()]
    for task in pending:
        task.cancel()
    await asyncio.gather(*pending, return_exceptions=True)
