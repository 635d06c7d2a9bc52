"""A locked child, seen from the process that serves: ask it, kill it, learn how it ended."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from dataclasses import dataclass
from typing import Literal

from icrl.errors import SandboxError
from icrl.runtime.sandbox.messages import Ended
from icrl.runtime.sandbox.pipes import CappedOutput, LineReader

__all__ = ["OUTPUT_CAP", "Answer", "Child", "Stuck", "Why"]

OUTPUT_CAP = 200_000
"""Bytes of output at which a program is stopped."""
_GRACE_S = 10.0

Why = Literal["timeout", "output_limit", "breach", "abandoned"]
"""Why a child was killed."""


class Stuck(Exception):
    """A zygote does not do what it was told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came of one request."""

    line: bytes | None
    """What the child replied."""
    ended: Ended | None
    """How it ended, if it did."""
    killed: Why | None
    """Why we killed it, if we did."""
    output: str
    """What was printed."""
    overflowed: bool
    """Whether more was printed than the cap allows."""
    wall_s: float
    """Seconds from the fork, or from the request in a session, to the end."""
    orphaned: bool = False
    """Whether the zygote died, and the child with it."""


class Child:
    """One fork of a zygote. Its descriptors exist before it does, so that requests can be on their way already.

    Args:
        name: What the zygote calls it.
    """

    def __init__(self, name: int) -> None:
        self.name = name
        self._loop = asyncio.get_running_loop()
        connection, self._far_connection = socket.socketpair()
        connection.setblocking(False)
        output, self._far_output = os.pipe()
        os.set_blocking(output, False)
        self._connection = connection
        self._output = CappedOutput(output, cap=OUTPUT_CAP, on_overflow=lambda: self.kill("output_limit"))
        self._lines = LineReader(connection, self._on_line)
        self._line: asyncio.Future[bytes] = self._loop.create_future()
        self._descriptor: int | None = None
        self.forked: asyncio.Future[str | None] = self._loop.create_future()
        self.ended: asyncio.Future[Ended | None] = self._loop.create_future()
        self.killed: Why | None = None
        self._is_free = False

    @property
    def far_ends(self) -> tuple[int, int]:
        """Descriptors for the child: its conversation and its output."""
        return self._far_connection.fileno(), self._far_output

    def sent(self) -> None:
        """Close the far ends: from now on only the child has them."""
        self._far_connection.close()
        os.close(self._far_output)

    def on_forked(self, descriptor: int) -> None:
        """Note that it exists."""
        self._descriptor = descriptor
        if self._is_free:  # nobody waited for it any more
            self.kill("abandoned")
            self._hang_up()
            return
        if not self.forked.done():
            self.forked.set_result(None)
        if self.killed:
            self._signal(signal.SIGKILL)

    def on_unforked(self, reason: str) -> None:
        """Note that it never came into being."""
        if not self.forked.done():
            self.forked.set_result(reason)
        self.on_ended(None)

    def on_ended(self, ended: Ended | None) -> None:
        """Note how it ended; `None` if nobody knows, because its zygote is gone."""
        if not self.forked.done():
            self.forked.set_result(None)
        if not self.ended.done():
            if not self._is_free:
                self._lines.drain()
            self.ended.set_result(ended)

    def _on_line(self, line: bytes | None) -> None:
        if line is None:
            self.kill("breach")
        elif not self._line.done():
            self._line.set_result(line)

    def kill(self, why: Why) -> None:
        """Kill it, at once or as soon as it exists."""
        self.killed = self.killed or why
        self._signal(signal.SIGKILL)

    def pause(self) -> None:
        """Stop it between requests, so that nothing of a program goes on behind our back."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        if self._descriptor is not None and not self.ended.done():
            with contextlib.suppress(ProcessLookupError):  # it ended, and the zygote has yet to say so
                signal.pidfd_send_signal(self._descriptor, number)

    async def ask(self, request: bytes, *, last: bool, timeout_s: float) -> Answer:
        """Send a request and wait for the reply, or for the end if it is the last.

        Args:
            request: One line.
            last: Whether the child is to end after it.
            timeout_s: Seconds until it is killed, from the fork or from the request, whatever comes later.

        Raises:
            Stuck: The zygote neither forks nor reaps.
            SandboxError: It could not fork.
        """
        self._line = self._loop.create_future()
        self._lines.expect(now=not last)
        try:
            async with asyncio.timeout(_GRACE_S) as bound:
                unsent = self._send_at_once(request)
                refusal = await asyncio.shield(self.forked)
                if refusal is not None:
                    raise SandboxError(f"a child of the sandbox could not be made: {refusal}")
                began = self._loop.time()
                bound.reschedule(began + timeout_s + _GRACE_S)
                killer = self._loop.call_later(timeout_s, self.kill, "timeout")
                try:
                    await self._send(unsent)
                    await self._wait(last=last)
                finally:
                    killer.cancel()
        except TimeoutError:
            raise Stuck(f"no answer {_GRACE_S:g} s after the deadline") from None
        return self._answer(self._loop.time() - began)

    def _send_at_once(self, request: bytes) -> bytes:
        try:
            return request[self._connection.send(request) :]
        except BlockingIOError:
            return request
        except OSError:  # it has ended already, and says so elsewhere
            return b""

    async def _send(self, unsent: bytes) -> None:
        if unsent:
            with contextlib.suppress(OSError):
                await self._loop.sock_sendall(self._connection, unsent)

    async def _wait(self, *, last: bool) -> None:
        events: set[asyncio.Future[Ended | None] | asyncio.Future[bytes]] = {self.ended}
        if not last:
            events.add(self._line)
        await asyncio.wait(events, return_when=asyncio.FIRST_COMPLETED)

    def _answer(self, wall_s: float) -> Answer:
        over = self.ended.done()
        return Answer(
            output=self._output.take(),
            line=self._line.result() if self._line.done() else None,
            ended=self.ended.result() if over else None,
            killed=self.killed,
            overflowed=self._output.overflowed,
            wall_s=wall_s,
            orphaned=over and self.ended.result() is None,
        )

    async def end(self) -> None:
        """Kill it if it still runs, wait until it is reaped, and free what it held."""
        self.kill("abandoned")
        try:
            await asyncio.wait({self.ended}, timeout=_GRACE_S)
        finally:
            self.free()

    def free(self) -> None:
        """Close its descriptors, once."""
        if self._is_free:
            return
        self._is_free = True
        self._output.close()
        self._lines.close()
        self._hang_up()

    def _hang_up(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
