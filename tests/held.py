"""An engine that answers when the test says so, and the rollouts that wait for it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from watched import until

from icrl.errors import EngineError
from icrl.runtime.engines.protocol import EngineInfo
from icrl.runtime.rollout import Plan
from icrl.testing import ByteTokenizer, fake_logprob
from icrl.trajectory import Generation, Trajectory, VersionSpan
from icrl.types import SamplingParams, Task

__all__ = ["Held", "by_answer", "plan_of"]

PARTIAL = "so fa"


class Held:
    """Every request waits until `say` or `fail` names its trajectory; an abort returns `PARTIAL`."""

    tokenizer = ByteTokenizer()

    def __init__(self, *, obeys: bool = True) -> None:
        self.info = EngineInfo(name="held", vocab_size=self.tokenizer.vocab_size, context_limit=100_000)
        self.asked: dict[str, asyncio.Future[str | None]] = {}
        self.order: list[str] = []
        self.params: dict[str, SamplingParams] = {}
        self.aborts: list[str] = []
        self._obeys = obeys

    @property
    def live(self) -> frozenset[str]:
        return frozenset(self.asked)

    async def generate(
        self, ids: Sequence[int], params: SamplingParams, *, request_id: str, session: str, **_: Any
    ) -> Generation:
        self.order.append(session)
        self.params[session] = params
        self.asked[session] = asyncio.get_running_loop().create_future()
        try:
            text = await self.asked[session]
        finally:
            del self.asked[session]
        said = tuple(self.tokenizer.encode(PARTIAL if text is None else text))
        return Generation(
            ids=said,
            logprobs=tuple(fake_logprob(token, len(ids) + i) for i, token in enumerate(said)),
            finish_reason="abort" if text is None else "stop",
            versions=(VersionSpan(version=0, start=0, end=len(said)),),
        )

    async def abort(self, request_id: str) -> None:
        session = request_id.rpartition("/")[0]
        self.aborts.append(session)
        if self._obeys and session in self.asked and not self.asked[session].done():
            self.asked[session].set_result(None)

    async def aclose(self) -> None:
        pass

    async def say(self, session: str, word: str) -> None:
        """Answer with a word, and wait until that has been taken note of."""
        await until(lambda: session in self.asked)
        self.asked[session].set_result(f"<answer> {word} </answer>")
        await until(lambda: session not in self.asked)
        await asyncio.sleep(0)

    async def fail(self, session: str) -> None:
        await until(lambda: session in self.asked)
        self.asked[session].set_exception(EngineError("is broken", engine="held"))
        await until(lambda: session not in self.asked)
        await asyncio.sleep(0)

    async def asks(self, *sessions: str) -> None:
        """Wait until exactly these trajectories wait for an answer."""
        await until(lambda: set(self.asked) == set(sessions))


def plan_of(name: str, members: int = 4, **options: Any) -> Plan:
    return Plan(task=Task(query=f"say {name}", answers=("yes",)), members=members, id=f"{name}/", **options)


async def by_answer(trajectory: Trajectory, task: Task) -> SimpleNamespace:
    """Pay 1 for `yes`, what it says for a number, and 0 for anything else."""
    answer = trajectory.answer or "no"
    number = answer.replace(".", "", 1).isdigit()
    return SimpleNamespace(total=float(answer) if number else float(answer == "yes"), components={})
