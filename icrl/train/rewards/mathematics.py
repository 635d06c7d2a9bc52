"""A matcher for mathematics: two answers match if they mean the same number, expression, set or interval."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from icrl.errors import ConfigError, DataError, RewardError
from icrl.imports import require
from icrl.runtime.workers import RemoteError, WorkerDied, Workers
from icrl.train.rewards.notation import final_answer, whole_number
from icrl.train.rewards.score import Score
from icrl.train.rewards.verification import Verdict
from icrl.types import Task

__all__ = ["MAX_ANSWER_CHARS", "MathMatcher"]

MAX_ANSWER_CHARS = 512
"""Longer answers are wrong without being looked at."""
START_TIMEOUT_S = 120.0
"""For a process to load its libraries and to prove that it can verify."""

_FACTORY = "icrl.train.rewards.verification:make_verifier"


@dataclass(slots=True, eq=False)
class _Seat:
    """A place for one verification at a time."""

    workers: Workers
    """A single process."""
    proven: bool = False
    """Whether the process runs and has verified something known."""


class MathMatcher:
    r"""Matches the last `\boxed{…}` of an answer, or the whole answer, as mathematics.

    Whole numbers and equal texts are decided at once. Everything else goes to math-verify, in processes that are
    killed at the deadline: what a model writes can keep it busy for ever. The deadline counts neither the wait for a
    process nor its start.

    Components: `em`, and a flag for each verification that found no verdict: `timeout` (killed at the deadline),
    `crashed` (the process died or the verifier raised), `unreadable`, `unreadable_gold` (the parser finds no
    mathematics in it), `too_long` (more than 512 characters). They are absent otherwise.

    Args:
        processes: Verifications at once.
        timeout_s: Seconds for one.
        memory_mb: Bound of each process' address space in MiB.

    Raises:
        MissingExtraError: math-verify is not installed.

    Example:
        >>> matcher = MathMatcher()
        >>> task = Task(query="What is 700 + 300?", answers=("1000",))
        >>> asyncio.run(matcher(r"It is \boxed{1,000}.", task))
        Score(total=1.0, components={'em': 1.0})
    """

    def __init__(self, *, processes: int = 2, timeout_s: float = 5.0, memory_mb: int = 2048) -> None:
        require("math_verify", extra="math")
        if processes < 1:
            raise ConfigError(f"processes: must be >= 1, not {processes!r}")
        if not timeout_s > 0:
            raise ConfigError(f"timeout_s: must be > 0 seconds, not {timeout_s!r}")
        self._timeout_s = timeout_s
        self._seats = [_Seat(Workers(_FACTORY, memory_mb=memory_mb, name="math")) for _ in range(processes)]
        self._free = list(self._seats)
        self._slots = asyncio.Semaphore(processes)

    async def __call__(self, answer: str | None, task: Task) -> Score:
        """Judge an answer.

        Raises:
            DataError: A reference answer is empty.
            RewardError: Verification does not work at all, as a known example shows.
        """
        found = final_answer(answer)
        if len(found) > MAX_ANSWER_CHARS:
            return _score(0.0, "too_long")
        unsure = []
        for gold in map(final_answer, task.answers):
            equal = _equal_at_sight(gold, found)
            if equal:
                return _score(1.0)
            if equal is None and found:
                unsure.append(gold)
        verdict = await self._verify(unsure, found) if unsure else "different"
        return _score(float(verdict == "equal"), *{verdict} - {"equal", "different"})

    async def _verify(self, golds: Sequence[str], answer: str) -> Verdict | Literal["timeout", "crashed"]:
        async with self._slots:
            seat = self._free.pop()
            try:
                return await self._judge(seat, golds, answer)
            finally:
                self._free.append(seat)

    async def _judge(self, seat: _Seat, golds: Sequence[str], answer: str) -> Verdict | Literal["timeout", "crashed"]:
        if not seat.proven:
            await _prove(seat.workers)
        seat.proven = False  # unless it answers: a process that is killed is followed by another
        try:
            verdict: Verdict = await seat.workers.run((golds, answer), timeout_s=self._timeout_s)
        except TimeoutError:
            return "timeout"
        except (WorkerDied, RemoteError):
            return "crashed"
        seat.proven = True
        return verdict

    async def aclose(self) -> None:
        """Kill the processes; a later call starts others."""
        for seat in self._seats:
            await seat.workers.aclose()
            seat.proven = False


def _equal_at_sight(gold: str, answer: str) -> bool | None:
    """Compare what needs no algebra; `None` where it does.

    Raises:
        DataError: The gold is empty.
    """
    if not gold:
        raise DataError("answers: one is empty, so nothing could match it")
    if "".join(gold.split()) == "".join(answer.split()):
        return True
    wanted, given = whole_number(gold), whole_number(answer)
    return wanted == given if wanted is not None and given is not None else None


async def _prove(workers: Workers) -> None:
    """Start a process and have it verify something known: a broken installation must not look like wrong answers."""
    try:
        verdict = await workers.run(([r"\frac{1}{2}"], "0.5"), timeout_s=START_TIMEOUT_S)
    except (TimeoutError, WorkerDied, RemoteError) as error:
        raise RewardError(f"math: the verifying process does not work: {error}") from error
    if verdict != "equal":
        raise RewardError(f"math: math-verify finds 1/2 and 0.5 {verdict}; is its version right?")


def _score(em: float, *flags: str) -> Score:
    return Score(total=em, components={"em": em, **dict.fromkeys(flags, 1.0)})
