"""The tests of a programming task, as its metadata holds them, and the program as an answer holds it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from icrl.errors import DataError, nearest
from icrl.runtime.sandbox.result import SandboxResult
from icrl.types import Task

__all__ = ["ProgramTest", "tests_of", "unfenced"]

_KEYS = ("stdin", "stdout", "assert")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramTest:
    r"""One test: either a snippet that runs after the program and must not raise, or input and expected output.

    Example:
        >>> ProgramTest(stdin="4", stdout="8").passed(SandboxResult(status="ok", stdout="8 \n"), "")
        True
    """

    stdin: str = ""
    """What the program reads."""
    stdout: str | None = None
    """What it has to print, blanks at line ends and empty lines at the end aside; `None` with a snippet."""
    snippet: str | None = None
    """Code that runs in the program's namespace, such as assertions."""

    def program(self, code: str, proof: str) -> str:
        """Return what to run.

        Args:
            code: The model's program.
            proof: A secret; the last expression after a snippet, so that a program which ends early proves nothing.
        """
        # The empty line ends a backslash continuation, with which a program could swallow the snippet's first line.
        return code if self.snippet is None else f"{code}\n\n{self.snippet}\n{proof!r}\n"

    def passed(self, result: SandboxResult, proof: str) -> bool:
        """Judge a run of `program`."""
        if result.status != "ok":
            return False
        if self.stdout is None:
            return result.value == repr(proof)
        return not result.truncated and _lines(result.stdout) == _lines(self.stdout)


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().split("\n")]


def tests_of(task: Task) -> tuple[ProgramTest, ...]:
    """Read `task.metadata["tests"]`: a list of `{stdin, stdout}`, `{assert}`, or snippets as plain text.

    Raises:
        DataError: There are none, or one is malformed; the message names it.

    Example:
        >>> tests_of(Task(query="q", metadata={"tests": ["assert f(1) == 2"]}))[0].snippet
        'assert f(1) == 2'
    """
    tests = task.metadata.get("tests")
    if not isinstance(tests, list | tuple) or not tests:
        raise DataError(f"task {task.id!r}: metadata.tests: needs a list of tests, not {tests!r}")
    return tuple(_test(test, f"task {task.id!r}: metadata.tests[{i}]") for i, test in enumerate(tests))


def _test(test: Any, where: str) -> ProgramTest:
    if isinstance(test, str):
        test = {"assert": test}
    if not isinstance(test, Mapping):
        raise DataError(f"{where}: needs an object with 'stdout' or 'assert', not {test!r}")
    for key, value in test.items():
        if key not in _KEYS:
            raise DataError(f"{where}: unknown key {key!r}.{nearest(str(key), _KEYS)}")
        if not isinstance(value, str):
            raise DataError(f"{where}: {key}: needs text, not {value!r}")
    if ("stdout" in test) == ("assert" in test):
        raise DataError(f"{where}: needs either 'stdout' or 'assert'")
    if "assert" in test and not test["assert"].strip():
        raise DataError(f"{where}: assert: is empty, so anything would pass")
    return ProgramTest(stdin=test.get("stdin", ""), stdout=test.get("stdout"), snippet=test.get("assert"))


def unfenced(answer: str) -> str:
    r"""Return the program of an answer: the last closed Markdown fence, or else the whole text.

    Example:
        >>> unfenced("So:\n```python\nprint(1)\n```\nDone.")
        'print(1)'
    """
    found, opened = None, None
    lines = answer.strip().split("\n")
    for i, line in enumerate(lines):
        if not line.lstrip().startswith("```"):
            continue
        if opened is None:
            opened = i
        elif line.strip() == "```":
            found, opened = "\n".join(lines[opened + 1 : i]), None
    return answer.strip() if found is None else found
