"""A matcher for programming tasks: the answer is a program, and right if it passes the task's tests in a sandbox."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass

from icrl.errors import ConfigError, RewardError
from icrl.runtime.sandbox.result import Executor, SandboxResult
from icrl.train.rewards.program_tests import ProgramTest, tests_of, unfenced
from icrl.train.rewards.score import Score
from icrl.types import Task

__all__ = ["ProgramMatcher"]

ANSWER_TIMEOUT_S = 120.0
"""Seconds beyond a test's own deadline after which an executor that has not answered is broken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramMatcher:
    r"""Runs the program of an answer against `task.metadata["tests"]`, each test in a fresh run.

    The program may stand in a Markdown fence; of several the last counts. Tests run in order. What is not run once
    the program has used up `budget_s` counts as failed by timeout.

    Components: `em` (all tests pass), `passed` (the fraction that does), and `timeouts` (a count; absent if 0).

    Example:
        >>> from icrl.runtime.sandbox.result import SandboxResult
        >>> class Doubler:
        ...     async def run(self, code, *, timeout_s=5.0, memory_mb=1024, stdin=""):
        ...         return SandboxResult(status="ok", stdout=f"{2 * int(stdin)}\n")
        >>> tests = [{"stdin": "4", "stdout": "8"}, {"stdin": "3", "stdout": "9"}]
        >>> task = Task(query="Square a number.", metadata={"tests": tests})
        >>> asyncio.run(ProgramMatcher(executor=Doubler())("print(2 * int(input()))", task))
        Score(total=0.0, components={'em': 0.0, 'passed': 0.5})
    """

    executor: Executor
    """Runs the programs; closed with the matcher."""
    timeout_s: float = 5.0
    """Seconds for one test."""
    budget_s: float = 30.0
    """Seconds of running for all tests of one answer together."""
    memory_mb: int = 1024
    """Bound of a run's memory in MiB."""

    def __post_init__(self) -> None:
        for name in ("timeout_s", "budget_s", "memory_mb"):
            if not (value := getattr(self, name)) > 0:
                raise ConfigError(f"{name}: must be > 0, not {value!r}")

    async def __call__(self, answer: str | None, task: Task) -> Score:
        """Run the tests.

        Raises:
            DataError: The task has no tests, or one is malformed.
            SandboxError: Isolation broke.
            RewardError: The executor does not answer.
        """
        tests = tests_of(task)
        code = unfenced(answer or "")
        left_s, passed, timeouts = self.budget_s if code else 0.0, 0, 0
        for test in tests:
            if left_s <= 0:
                timeouts += bool(code)
                continue
            result, right = await self._run(code, test, min(self.timeout_s, left_s))
            left_s -= result.wall_s
            passed += right
            timeouts += result.status == "timeout"
        em = float(passed == len(tests))
        flag = {"timeouts": float(timeouts)} if timeouts else {}
        return Score(total=em, components={"em": em, "passed": passed / len(tests), **flag})

    async def _run(self, code: str, test: ProgramTest, timeout_s: float) -> tuple[SandboxResult, bool]:
        proof = secrets.token_hex(16)
        try:
            async with asyncio.timeout(timeout_s + ANSWER_TIMEOUT_S):
                result = await self.executor.run(
                    test.program(code, proof), timeout_s=timeout_s, memory_mb=self.memory_mb, stdin=test.stdin
                )
        except TimeoutError:
            raise RewardError(
                f"programs: the executor did not answer within {timeout_s + ANSWER_TIMEOUT_S:g} s"
            ) from None
        return result, test.passed(result, proof)

    async def aclose(self) -> None:
        """Close the executor."""
        await self.executor.aclose()
