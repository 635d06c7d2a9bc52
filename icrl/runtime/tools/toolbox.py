"""The tools of an agent, behind one door: every call gets an answer in time, whatever the tool does."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Iterable, Sequence
from functools import partial

from icrl.errors import (
    ConfigError,
    SandboxError,
    ToolArgumentError,
    ToolError,
    ToolNotFound,
    ToolTimeout,
    nearest,
)
from icrl.runtime.tools.gate import Gate
from icrl.runtime.tools.tool import Tool, ToolSpec, close
from icrl.types import ToolCall, ToolResult

__all__ = ["Toolbox"]

CANCEL_GRACE_S = 0.5
"""How long a cancelled tool may take to clean up before it is left behind."""
MAX_ERROR_CHARS = 500

_LOG = logging.getLogger("icrl.tools")
_DIRECTORIES = re.compile(r"(?<![\w/:.])/(?:[^\s/'\"]+/)+")


class Toolbox:
    """Tools by name, each with its own limit on concurrent calls, its own queue and its own deadline.

    Args:
        tools: The tools; their names must differ.
        max_result_chars: Longer results are cut in the middle, before anything tokenises them.

    Raises:
        ConfigError: Two tools share a name, or one is not a tool.

    Example:
        >>> from icrl.testing import EchoTool
        >>> toolbox = Toolbox([EchoTool()])
        >>> asyncio.run(toolbox.run(ToolCall(name="echo", arguments={"text": "hi"}), deadline_s=5.0)).text
        'hi'
        >>> asyncio.run(toolbox.run(ToolCall(name="ecko"), deadline_s=5.0)).text
        "ToolNotFound: there is no tool 'ecko'. Did you mean 'echo'? The tools are: echo."
    """

    def __init__(self, tools: Iterable[Tool], *, max_result_chars: int = 200_000) -> None:
        if max_result_chars < 1:
            raise ConfigError(f"max_result_chars: must be >= 1, not {max_result_chars!r}")
        self._max_result_chars = max_result_chars
        self._tools: dict[str, tuple[Tool, Gate]] = {}
        self._left_behind: set[asyncio.Task[str]] = set()
        for tool in tools:
            self._add(tool)
        self.specs: tuple[ToolSpec, ...] = tuple(tool.spec for tool, _ in self._tools.values())
        """What the model is told, in the order given."""

    def _add(self, tool: Tool) -> None:
        if not isinstance(tool, Tool):
            raise ConfigError(f"tools: {tool!r} is not a tool; decorate the function with @icrl.tool")
        if tool.spec.name in self._tools:
            raise ConfigError(f"tools: two tools are named {tool.spec.name!r}; give one another name")
        self._tools[tool.spec.name] = tool, Gate(slots=tool.policy.max_concurrency, max_queue=tool.policy.max_queue)

    async def run(self, call: ToolCall, *, deadline_s: float) -> ToolResult:
        """Answer one call; whatever goes wrong in the tool is part of the answer.

        Args:
            call: The call.
            deadline_s: Seconds until the answer is needed, waiting included; the tool's own timeout may be shorter.

        Returns:
            The result. Its `error` is the class name of what went wrong, and then its text names it for the model.

        Raises:
            SandboxError: Isolation broke, which no model may learn.
        """
        started = time.monotonic()
        text, error = await self._answer(call, deadline_s)
        text, truncated = _fit(text, self._max_result_chars)
        return ToolResult(
            call_id=call.id,
            name=call.name,
            text=text,
            error=error,
            wall_s=time.monotonic() - started,
            truncated=truncated,
        )

    async def run_all(self, calls: Sequence[ToolCall], *, deadline_s: float) -> tuple[ToolResult, ...]:
        """Answer several calls concurrently, in the order given; none can spoil another.

        Raises:
            SandboxError: Isolation broke in one of them; the others are cancelled.
        """
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self.run(call, deadline_s=deadline_s)) for call in calls]
        except BaseExceptionGroup as broken:
            raise broken.exceptions[0] from None
        return tuple(task.result() for task in tasks)

    async def aclose(self) -> None:
        """Cancel what was left behind and close the tools; a later call opens them again."""
        left_behind = tuple(self._left_behind)
        for task in left_behind:
            task.cancel()
        if left_behind:
            await asyncio.wait(left_behind, timeout=CANCEL_GRACE_S)
        endings = await asyncio.gather(*(close(tool) for tool, _ in self._tools.values()), return_exceptions=True)
        for ending in endings:
            if ending is not None:
                raise ending

    async def _answer(self, call: ToolCall, deadline_s: float) -> tuple[str, str | None]:
        """Return the text, and the class name of what went wrong."""
        try:
            if call.error is not None:
                raise ToolArgumentError(call.error)
            return await self._call(call, deadline_s), None
        except SandboxError:
            raise
        except ToolError as error:
            return f"{type(error).__name__}: {error}", type(error).__name__
        except Exception as error:
            _LOG.debug("tool %s raised", call.name, exc_info=error)
            return _explain(error), type(error).__name__

    async def _call(self, call: ToolCall, deadline_s: float) -> str:
        if call.name not in self._tools:
            listed = ", ".join(self._tools) or "none"
            hint = nearest(call.name, self._tools)
            raise ToolNotFound(f"there is no tool {call.name!r}.{hint} The tools are: {listed}.")
        tool, gate = self._tools[call.name]
        timeout_s = min(tool.policy.timeout_s, deadline_s)
        ends = time.monotonic() + timeout_s
        if timeout_s <= 0:
            raise ToolTimeout(f"no time was left to run {call.name}")
        if not gate.try_enter():
            try:
                await gate.enter(timeout_s)
            except TimeoutError:
                raise ToolTimeout(f"{call.name} had no free slot within {timeout_s:.3g} s") from None
        return await self._watch(tool, call, gate, timeout_s, ends)

    async def _watch(self, tool: Tool, call: ToolCall, gate: Gate, timeout_s: float, ends: float) -> str:
        """Run the tool as a task, so that one which ignores its cancellation cannot hold up the caller."""
        try:
            task: asyncio.Task[str] = asyncio.ensure_future(tool(call.arguments))
        except BaseException:
            gate.leave()
            raise
        # The slot is held until the work ends, not until nobody waits for it any more.
        task.add_done_callback(partial(_leave, gate))
        try:
            await asyncio.wait((task,), timeout=max(0.0, ends - time.monotonic()))
        except asyncio.CancelledError:
            await self._cancel(task)
            raise
        if task.done():
            return _result(task)
        await self._cancel(task)
        if task.done() and not task.cancelled() and isinstance(task.exception(), SandboxError):
            return task.result()
        note = "" if task.done() else ", and went on after it was cancelled"
        raise ToolTimeout(f"{call.name} gave no answer within {timeout_s:.3g} s{note}")

    async def _cancel(self, task: asyncio.Task[str]) -> None:
        task.cancel()
        self._left_behind.add(task)
        task.add_done_callback(self._left_behind.discard)
        await asyncio.wait((task,), timeout=CANCEL_GRACE_S)


def _leave(gate: Gate, task: asyncio.Task[str]) -> None:
    gate.leave()
    if not task.cancelled():
        # Marks it as seen: the loop would complain about the exception of a task that was left behind.
        task.exception()


def _result(task: asyncio.Task[str]) -> str:
    try:
        text = task.result()
    except asyncio.CancelledError:
        # Nobody cancelled the task from here, so the tool did it to itself.
        raise ToolError("the tool cancelled itself") from None
    if not isinstance(text, str):
        raise ToolError(f"the tool returned {type(text).__name__}, which is not text")
    return text


def _explain(error: Exception) -> str:
    """Describe an exception to the model: its class and first line, without the machine's directories."""
    message = next(iter(str(error).strip().splitlines()), "no message")
    return f"{type(error).__name__}: {_DIRECTORIES.sub('', message)[:MAX_ERROR_CHARS]}"


def _fit(text: str, max_chars: int) -> tuple[str, bool]:
    """Cut a text in the middle, and make sure that it can be encoded."""
    truncated = len(text) > max_chars
    if truncated:
        head = (max_chars + 1) // 2
        tail = max_chars - head
        text = f"{text[:head]}\n[{len(text) - max_chars} characters left out]\n{text[len(text) - tail :]}"
    if not text.isascii():
        # Lone surrogates become U+FFFD, pairs the character they stand for.
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text, truncated
