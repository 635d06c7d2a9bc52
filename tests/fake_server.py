"""A server that is only an object: it can be taken away, restarted, and told to fail."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from icrl.errors import EngineError, WeightSyncError
from icrl.runtime.engines.protocol import EngineInfo, EngineLoad, LostRequest
from icrl.testing import ByteTokenizer, ScriptedEngine
from icrl.trajectory import Generation

PROMPT = tuple(b"prompt:")
TEXT = "a reply of thirty-two characters"


def continuing(text: str = TEXT) -> Callable[[Sequence[int]], str]:
    """Say a text after `PROMPT`, or the rest of it where a part was said already, as a model at temperature 0 would."""

    def script(ids: Sequence[int]) -> str:
        return text[len(ids) - len(PROMPT) :]

    return script


def refusal(name: str) -> EngineError:
    """Return what a server that is away answers."""
    error = EngineError("cannot be reached", engine=name, retryable=True)
    error.__cause__ = ConnectionRefusedError(111, "connection refused")
    return error


class FakeServer(ScriptedEngine):
    """A scripted engine that may be away, and fails as told."""

    def __init__(self, name: str, replies: Any = None, **options: Any) -> None:
        super().__init__(replies or continuing(), **options)
        self.name = name
        self.up = True
        self.errors: deque[EngineError | int] = deque()
        """What becomes of the next requests: an error, or the number of tokens after which they are lost."""
        self.bad_probes: deque[Exception] = deque()
        self.broken: set[str] = set()
        """Which of `pause`, `update`, `resume` fail."""
        self.starts = self.probes = 0
        self.weights: list[tuple[int, list[Any]]] = []
        self.calls: list[str] = []
        self.load = EngineLoad(running=0, waiting=0, kv_usage=0.0)

    @property
    def info(self) -> EngineInfo:
        scripted = super().info
        return EngineInfo(
            name=self.name,
            vocab_size=scripted.vocab_size,
            context_limit=scripted.context_limit,
            weight_version=scripted.weight_version,
            capabilities=scripted.capabilities,
        )

    async def kill(self) -> None:
        """Go away, with everything that is under way."""
        self.up = False
        for request_id in self.live:
            await super().abort(request_id)

    def restart(self) -> None:
        """Come back with the first weights."""
        self.up, self._weight_version = True, 0
        self._running.set()

    async def start(self) -> None:
        self._answer()
        self.starts += 1

    async def probe(self) -> EngineLoad:
        self._answer()
        self.probes += 1
        if self.bad_probes:
            raise self.bad_probes.popleft()
        return self.load

    async def generate(self, ids: Sequence[int], params: Any, **options: Any) -> Generation:
        self._answer()
        fault = self.errors.popleft() if self.errors else None
        if isinstance(fault, EngineError):
            raise fault
        tell = options.get("on_delta")
        if fault is not None and tell is not None:
            told = itertools.count()
            options["on_delta"] = lambda new: tell(new) if next(told) < fault else None
        whole = await super().generate(ids, params, **options)
        if fault is not None:
            raise LostRequest("the connection broke", engine=self.name, partial=_first(whole, fault))
        if not self.up:
            raise LostRequest("the server went away", engine=self.name, partial=_first(whole, len(whole.ids)))
        return whole

    async def pause(self, mode: Any = "in_place") -> None:
        self._act("pause")
        await super().pause(mode)

    async def update(self, weights: Any, version: int) -> None:
        weights = list(weights)
        self._act("update")
        self.weights.append((version, weights))
        await super().update(weights, version)

    async def resume(self) -> None:
        self._act("resume")
        await super().resume()

    def _act(self, what: str) -> None:
        self._answer()
        self.calls.append(what)
        if what in self.broken:
            raise WeightSyncError(f"{self.name} could not {what}")

    def _answer(self) -> None:
        if not self.up:
            raise refusal(self.name)


def _first(whole: Generation, count: int) -> Generation:
    spans = tuple(s for s in whole.versions if s.end <= count) if count == len(whole.ids) else ()
    return Generation(
        ids=whole.ids[:count],
        logprobs=whole.logprobs[:count],
        finish_reason="abort",
        versions=spans,
        prompt_tokens=whole.prompt_tokens,
    )


def said(generation: Generation) -> str:
    """Return the text of a generation of bytes."""
    return ByteTokenizer().decode(generation.ids)
