"""One connection to an MCP server.

An MCP client has to be entered and left by one task, so every connection has a task that owns it; calls come from
whichever task needs them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from importlib import import_module
from typing import TYPE_CHECKING, Any

from icrl.errors import ToolUnavailable

if TYPE_CHECKING:
    from mcp import Client

__all__ = ["Connect", "Connection"]

CLOSE_TIMEOUT_S = 6.0
"""How long a server may take to end; one that runs here is killed well before."""

Connect = Callable[[bytearray], AbstractAsyncContextManager[Any]]
"""Makes a transport, without an event loop."""

_LOG = logging.getLogger("icrl.tools")


class Connection:
    """One connection, and the task that owns it.

    Args:
        connect: Makes the transport; called in a thread, with a place for the last that a program wrote to its log.
        name: Of the server, for people.
        timeout_s: Seconds until it must have answered the first message.
    """

    def __init__(self, connect: Connect, name: str, timeout_s: float) -> None:
        self._connect = connect
        self._name = name
        self._timeout_s = timeout_s
        self._stopping = asyncio.Event()
        self._opened: asyncio.Future[Client] = asyncio.get_running_loop().create_future()
        self._lost = False
        self._task = asyncio.create_task(self._own())

    @property
    def lost(self) -> bool:
        """Whether no call can be made any more."""
        return self._lost or self._task.done()

    @lost.setter
    def lost(self, lost: bool) -> None:
        self._lost = lost

    @property
    def ended(self) -> bool:
        """Whether nothing is left of it."""
        return self._task.done()

    async def client(self) -> Client:
        """Wait until it is open.

        Raises:
            ToolUnavailable: It could not be opened.
        """
        return await asyncio.shield(self._opened)

    def stop(self) -> None:
        """Begin to close."""
        self._stopping.set()
        if not self._opened.done():
            self._task.cancel()

    async def wait(self) -> None:
        """Wait until it is closed."""
        if self._task.get_loop() is asyncio.get_running_loop():
            await asyncio.wait((self._task,), timeout=CLOSE_TIMEOUT_S)

    async def _own(self) -> None:
        stderr = bytearray()
        try:
            await self._live(stderr)
        except BaseException as error:
            self._fail(error, stderr)
            if isinstance(error, asyncio.CancelledError) and not self._stopping.is_set():
                raise

    async def _live(self, stderr: bytearray) -> None:
        # Imports take a second here, which the event loop does not have.
        transport = await asyncio.to_thread(self._prepare, stderr)
        from mcp import Client

        async with asyncio.timeout(self._timeout_s) as fence:
            async with Client(transport, cache=None) as client:
                fence.reschedule(None)
                self._opened.set_result(client)
                await self._stopping.wait()

    def _prepare(self, stderr: bytearray) -> AbstractAsyncContextManager[Any]:
        import_module("jsonschema")  # the client imports it at the first answer
        return self._connect(stderr)

    def _fail(self, error: BaseException, stderr: bytearray) -> None:
        if self._opened.done():
            return
        reason = _reason(error, self._timeout_s)
        said = stderr.decode(errors="replace").strip()
        tail = f"; it wrote: {said}" if said else ""
        # The model reads the error, people the note: it may tell of the machine.
        unavailable = ToolUnavailable("the MCP server cannot be reached")
        unavailable.add_note(f"MCP server {self._name}: cannot connect ({reason}){tail}")
        _LOG.warning("%s", unavailable.__notes__[0])
        self._opened.set_exception(unavailable)
        # Whoever asked may have stopped waiting.
        self._opened.exception()


def _reason(error: BaseException, timeout_s: float) -> str:
    if isinstance(error, BaseExceptionGroup):
        return _reason(error.exceptions[0], timeout_s)
    if isinstance(error, TimeoutError):
        return f"no answer within {timeout_s:.3g} s"
    if isinstance(error, asyncio.CancelledError):
        return "closed meanwhile"
    return next(iter(str(error).splitlines()), type(error).__name__)
