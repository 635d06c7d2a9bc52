"""One worker process, seen from ours."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from icrl.runtime.workers import child

__all__ = ["Process", "RemoteError", "WorkerDied", "first_frame"]

KEPT = (
    "PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "XDG_CACHE_HOME", "NUMBA_CACHE_DIR", "LD_LIBRARY_PATH", "HF_HOME",
    "HF_HUB_OFFLINE",
)  # fmt: skip
"""Environment variables that a worker gets; the others may hold secrets."""
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
"""Several processes share the cores; each of them computes in one thread."""
REAP_TIMEOUT_S = 10.0
SCRIPT = str(Path(__file__).with_name("child.py"))


class WorkerDied(RuntimeError):
    """The process of a request ended before it answered."""


class RemoteError(RuntimeError):
    """The function of a worker raised.

    Example:
        >>> error = RemoteError("KeyError", "'x'")
        >>> error.kind, str(error)
        ('KeyError', "KeyError: 'x'")
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(f"{kind}: {message}")
        self.kind = kind
        """Name of the exception's class."""
        self.message = message
        """Its text."""

    def __reduce__(self) -> tuple[object, ...]:
        """Keep the error picklable although its text is not its argument."""
        return RemoteError, (self.kind, self.message)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Process:
    """A running worker."""

    popen: subprocess.Popen[bytes]
    """Its handle."""
    connection: socket.socket
    """Our end, which does not block; the other is the worker's standard input."""

    @classmethod
    def start(cls) -> Process:
        """Execute a fresh interpreter; blocks.

        The process dies with the thread that calls this. It inherits no descriptor but standard error, and leads a
        session of its own, so that an interrupt from the terminal does not reach it.
        """
        path = json.dumps([str(Path(entry).absolute()) for entry in sys.path])
        command = [sys.executable, "-I", SCRIPT, str(os.getpid()), path]
        environment = {name: os.environ[name] for name in KEPT if name in os.environ} | ONE_THREAD
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                popen = subprocess.Popen(
                    command, stdin=theirs.fileno(), stdout=subprocess.DEVNULL, env=environment, start_new_session=True
                )
        except BaseException:
            ours.close()
            raise
        ours.setblocking(False)
        return cls(popen=popen, connection=ours)

    @property
    def is_quiet(self) -> bool:
        """Whether it lives and has said nothing unasked."""
        try:
            self.connection.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            pass
        return False

    async def ask(self, frame: bytes) -> Any:
        """Send a frame and wait for the reply.

        Raises:
            RemoteError: The function raised.
            EOFError: The process is gone, or does not keep to the protocol.
        """
        loop = asyncio.get_running_loop()
        try:
            await loop.sock_sendall(self.connection, len(frame).to_bytes(child.HEADER_BYTES, "little"))
            await loop.sock_sendall(self.connection, frame)
            size = int.from_bytes(await self._receive(child.HEADER_BYTES), "little")
            if size > child.MAX_MESSAGE_BYTES:
                raise EOFError(f"announced a reply of {size} bytes")
            worked, value = msgspec.msgpack.decode(await self._receive(size), type=tuple[bool, Any])
            if not worked:
                raise RemoteError(*msgspec.convert(value, tuple[str, str]))
        except OSError as error:
            raise EOFError(f"closed its end ({error.strerror})") from error
        except (msgspec.MsgspecError, RecursionError) as error:
            raise EOFError(f"sent something that is no reply: {error}") from error
        return value

    async def _receive(self, size: int) -> bytes:
        loop = asyncio.get_running_loop()
        data = bytearray()
        while len(data) < size:
            chunk = await loop.sock_recv(self.connection, min(size - len(data), 2**20))
            if not chunk:
                raise EOFError("closed its end")
            data += chunk
        return bytes(data)

    def kill(self) -> None:
        """Kill it and what it started; returns at once, and must not be called once it is reaped.

        Whoever talks to it finds that it has closed its end, and closes ours.
        """
        with suppress(ProcessLookupError):
            os.killpg(self.popen.pid, signal.SIGKILL)

    def reap(self) -> str:
        """Wait for the end of a killed process and say how it ended; blocks."""
        with suppress(subprocess.TimeoutExpired):
            self.popen.wait(REAP_TIMEOUT_S)
        code = self.popen.returncode
        return f"exit code {code}" if code is None or code >= 0 else signal.Signals(-code).name


def first_frame(factory: str, arguments: Sequence[Any], memory_mb: int | None) -> bytes:
    """Encode what a worker is told first."""
    return msgspec.msgpack.encode((factory, arguments, memory_mb))
