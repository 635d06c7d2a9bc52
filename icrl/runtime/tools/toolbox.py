"""The tools of an agent, behind one door: every call gets an answer in time, whatever the tool does."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Collection, Iterable, Mapping
from functools import partial

from icrl.errors import ConfigError, SandboxError, ToolArgumentError, ToolError, ToolNotFound, nearest
from icrl.runtime.tools.accounts import ToolAccount
from icrl.runtime.tools.cache import ToolCache
from icrl.runtime.tools.desk import CANCEL_GRACE_S, Desk
from icrl.runtime.tools.journal import Answer, Journal
from icrl.runtime.tools.tool import Tool, ToolSpec, close
from icrl.types import ToolCall, ToolResult

__all__ = ["Toolbox"]

END_TIMEOUT_S = 5.0
"""How long tools may take to forget a session."""
MAX_ERROR_CHARS = 500

_LOG = logging.getLogger("icrl.tools")
_DIRECTORIES = re.compile(r"(?<![\w/:.])/(?:[^\s/'\"]+/)+")


class Toolbox:
    """Tools by name, each with its own limit on concurrent calls, its own queue and its own deadline.

    Args:
        tools: The tools; their names must differ.
        max_result_chars: Longer results are cut in the middle, before anything tokenises them.
        cache: Keeps answers of repeatable tools; may serve several toolboxes. Closed with the toolbox.
        journal: A `Recorder` or a `Replayer`. Closed with the toolbox.

    Raises:
        ConfigError: Two tools share a name, one is not a tool, or a repeatable one has no fingerprint.

    Example:
        >>> from icrl.testing import EchoTool
        >>> toolbox = Toolbox([EchoTool()])
        >>> asyncio.run(toolbox.run(ToolCall(name="echo", arguments={"text": "hi"}), deadline_s=5.0)).text
        'hi'
        >>> asyncio.run(toolbox.run(ToolCall(name="ecko"), deadline_s=5.0)).text
        "ToolNotFound: there is no tool 'ecko'. Did you mean 'echo'? The tools are: echo."
    """

    def __init__(
        self,
        tools: Iterable[Tool],
        *,
        max_result_chars: int = 200_000,
        cache: ToolCache | None = None,
        journal: Journal | None = None,
    ) -> None:
        if max_result_chars < 1:
            raise ConfigError(f"max_result_chars: must be >= 1, not {max_result_chars!r}")
        self._max_result_chars = max_result_chars
        self._cache = cache
        self._journal = journal
        self._desks: dict[str, Desk] = {}
        for tool in tools:
            self._add(tool)
        self._stateful = [desk.tool for desk in self._desks.values() if hasattr(desk.tool, "end")]
        self._ending: set[asyncio.Task[None]] = set()
        self.specs: tuple[ToolSpec, ...] = tuple(desk.tool.spec for desk in self._desks.values())
        """What the model is told, in the order given."""

    def _add(self, tool: Tool) -> None:
        if not isinstance(tool, Tool):
            raise ConfigError(f"tools: {tool!r} is not a tool; decorate the function with @icrl.tool")
        if tool.spec.name in self._desks:
            raise ConfigError(f"tools: two tools are named {tool.spec.name!r}; give one another name")
        self._desks[tool.spec.name] = Desk(tool, cache=self._cache)

    @property
    def accounts(self) -> Mapping[str, ToolAccount]:
        """What every tool was asked so far, by name."""
        return {name: desk.account.snapshot() for name, desk in self._desks.items()}

    async def run(
        self, call: ToolCall, *, deadline_s: float, session: str = "", offered: Collection[str] | None = None
    ) -> ToolResult:
        """Answer one call; whatever goes wrong in the tool is part of the answer.

        Args:
            call: The call.
            deadline_s: Seconds until the answer is needed, waiting included; the tool's own timeout may be shorter.
            session: The trajectory that calls; tools with state keep it per session until `end`.
            offered: Names that the model was told, all of them if not given; for it there are no others.

        Returns:
            The result. Its `error` is the class name of what went wrong, and then its text names it for the model.

        Raises:
            SandboxError: Isolation broke, which no model may learn.
            DataError: The journal has no such call, or cannot be written.
        """
        started = time.monotonic()
        names = self._desks.keys() if offered is None else offered
        desk = self._desks.get(call.name) if call.name in names else None
        answer = self._missing(call, names) if desk is None else await self._ask(desk, call, deadline_s, session)
        return ToolResult(
            call_id=call.id,
            name=call.name,
            text=answer.text,
            error=answer.error,
            wall_s=time.monotonic() - started,
            truncated=answer.truncated,
        )

    async def end(self, session: str) -> None:
        """Let the tools forget a session; one that does not in time is cancelled, and the others are not kept waiting.

        It goes on in the background where its caller is cancelled; `aclose` waits for it.
        """
        if self._journal is not None:
            self._journal.end(session)
        if not self._stateful:
            return
        endings = [asyncio.create_task(_end(tool, session)) for tool in self._stateful]
        self._ending.update(endings)
        for ending in endings:
            ending.add_done_callback(self._ending.discard)
        await asyncio.wait(endings, timeout=END_TIMEOUT_S + CANCEL_GRACE_S)

    async def aclose(self) -> None:
        """Cancel what was left behind, close the tools, the cache and the journal; a later call opens them again.

        Raises:
            Exception: What the first of them that failed raised, once all are closed.
        """
        if self._ending:
            await asyncio.wait(tuple(self._ending), timeout=END_TIMEOUT_S + CANCEL_GRACE_S)
        left_behind = {task for desk in self._desks.values() for task in desk.left_behind} | self._ending
        for task in left_behind:
            task.cancel()
        if left_behind:
            await asyncio.wait(left_behind, timeout=CANCEL_GRACE_S)
        await _all(close(desk.tool) for desk in self._desks.values())
        await _all(close(part) for part in (self._cache, self._journal) if part is not None)

    async def _ask(self, desk: Desk, call: ToolCall, deadline_s: float, session: str) -> Answer:
        account = desk.account
        account.calls += 1
        try:
            if self._journal is None or call.error is not None:
                answer = await self._answer(desk, call, deadline_s, session)
            else:
                place = self._journal.place(session, call.name, desk.fingerprint, call.arguments)
                run = partial(self._answer, desk, call, deadline_s, session)
                answer = await self._journal.answer(place, run)
        except asyncio.CancelledError:
            account.cancelled += 1
            raise
        except Exception as error:
            account.answer("", type(error).__name__)
            raise
        account.answer(answer.text, answer.error)
        return answer

    async def _answer(self, desk: Desk, call: ToolCall, deadline_s: float, session: str) -> Answer:
        """Return the text that fits, and the class name of what went wrong."""
        try:
            if call.error is not None:
                raise ToolArgumentError(call.error)
            text = await desk.answer(call.arguments, deadline_s=deadline_s, session=session)
        except SandboxError:
            raise
        except Exception as error:
            return self._failed(call.name, error)
        return _fit(text, None, self._max_result_chars)

    def _missing(self, call: ToolCall, names: Collection[str]) -> Answer:
        if call.error is not None:
            return self._failed(call.name, ToolArgumentError(call.error))
        listed = ", ".join(names) or "none"
        hint = nearest(call.name, names)
        return self._failed(call.name, ToolNotFound(f"there is no tool {call.name!r}.{hint} The tools are: {listed}."))

    def _failed(self, name: str, error: Exception) -> Answer:
        if isinstance(error, ToolError):
            text = f"{type(error).__name__}: {error}"
        else:
            _LOG.debug("tool %s raised", name, exc_info=error)
            text = _explain(error)
        return _fit(text, type(error).__name__, self._max_result_chars)


async def _end(tool: Tool, session: str) -> None:
    """Let a tool forget a session; the trajectory is over, so that only people hear of a failure."""
    try:
        async with asyncio.timeout(END_TIMEOUT_S):
            await tool.end(session)  # type: ignore[attr-defined]  # optional, see Tool
    except Exception as error:
        _LOG.warning("tool %s could not end session %s: %r", tool.spec.name, session, error)


async def _all(endings: Iterable[Awaitable[None]]) -> None:
    """Await all; raise what the first of them raised."""
    for outcome in await asyncio.gather(*endings, return_exceptions=True):
        if outcome is not None:
            raise outcome


def _explain(error: Exception) -> str:
    """Describe an exception to the model: its class and first line, without the machine's directories."""
    message = next(iter(str(error).strip().splitlines()), "no message")
    return f"{type(error).__name__}: {_DIRECTORIES.sub('', message)[:MAX_ERROR_CHARS]}"


def _fit(text: str, error: str | None, max_chars: int) -> Answer:
    """Cut a text in the middle, and make sure that it can be encoded."""
    truncated = len(text) > max_chars
    if truncated:
        head = (max_chars + 1) // 2
        tail = max_chars - head
        text = f"{text[:head]}\n[{len(text) - max_chars} characters left out]\n{text[len(text) - tail :]}"
    if not text.isascii():
        # Lone surrogates become U+FFFD, pairs the character they stand for.
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return Answer(text, error, truncated)
