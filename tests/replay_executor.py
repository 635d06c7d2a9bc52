"""An executor for tests: it runs trusted programs in this process, and answers what it is told for others."""

from __future__ import annotations

import ast
import contextlib
import io
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from icrl.runtime.sandbox.result import Executor, SandboxResult

__all__ = ["InProcess"]


class InProcess:
    """Runs programs by `exec`; every REPL has its own variables.

    Args:
        told: What to answer for some programs, an exception to raise included.
    """

    def __init__(self, told: Mapping[str, SandboxResult | BaseException] | None = None) -> None:
        self.told = dict(told or {})
        self.calls: list[tuple[str, float, int]] = []
        self.opened = self.closed = self.shut = 0
        self.namespace: dict[str, Any] | None = None

    async def run(self, code: str, *, timeout_s: float = 5.0, memory_mb: int = 1024, stdin: str = "") -> SandboxResult:
        self.calls.append((code, timeout_s, memory_mb))
        told = self.told.get(code)
        if isinstance(told, BaseException):
            raise told
        return told or execute(code, {} if self.namespace is None else self.namespace)

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Executor]:
        repl = InProcess(self.told)
        repl.namespace, repl.calls = {}, self.calls
        self.opened += 1
        try:
            yield repl
        finally:
            self.closed += 1

    async def aclose(self) -> None:
        self.shut += 1


def execute(code: str, namespace: dict[str, Any]) -> SandboxResult:
    printed, value = io.StringIO(), None
    try:
        body = ast.parse(code).body
        last = body.pop() if body and isinstance(body[-1], ast.Expr) else None
        with contextlib.redirect_stdout(printed):
            exec(compile(ast.Module(body, []), "<snippet>", "exec"), namespace)
            if isinstance(last, ast.Expr):
                value = eval(compile(ast.Expression(last.value), "<snippet>", "eval"), namespace)
    except Exception as error:
        return SandboxResult(status="error", stdout=printed.getvalue(), error=f"{type(error).__name__}: {error}")
    return SandboxResult(status="ok", stdout=printed.getvalue(), value=None if value is None else repr(value))
