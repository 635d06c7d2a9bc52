"""What runs in a worker process: a script that needs nothing of the package but itself.

Both sides send frames: eight bytes of length, then msgpack. The first frame says what to be, each further one is a
request. A reply is `[True, value]` or `[False, [kind, message]]`.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any

__all__ = ["HEADER_BYTES", "MAX_MESSAGE_BYTES", "encode_reply", "main", "serve"]

HEADER_BYTES = 8
MAX_MESSAGE_BYTES = 64 * 2**20
"""Longest reply; the parent kills a process that announces a longer one."""
MAX_ERROR_CHARS = 4000
PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    """Become a worker: talk over standard input, which is a socket.

    Args:
        arguments: The parent's process id and its import path as JSON.
    """
    parent, path = arguments
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != int(parent):  # it died before we asked to die with it
        return
    sys.path[:] = json.loads(path)
    with socket.socket(fileno=os.dup(0)) as connection:
        # What the function prints, or reads, must not get between the frames.
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)
        os.dup2(2, 1)
        serve(connection)


def serve(connection: socket.socket) -> None:
    """Call the factory, say that it is done, then answer requests until the other side closes."""
    from msgspec import msgpack

    first = _receive(connection)
    if first is None:
        return
    factory, arguments, memory_mb = msgpack.decode(first)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if memory_mb is not None:
        resource.setrlimit(resource.RLIMIT_AS, (memory_mb * 2**20,) * 2)
    made: list[Callable[[Any], Any]] = []
    _send(connection, encode_reply(lambda: made.append(_make(factory, arguments))))
    while made and (request := _receive(connection)) is not None:
        body = request
        _send(connection, encode_reply(lambda: made[0](msgpack.decode(body))))  # noqa: B023 - called at once


def _make(factory: str, arguments: list[Any]) -> Callable[[Any], Any]:
    module, _, name = factory.partition(":")
    function: Callable[[Any], Any] = getattr(importlib.import_module(module), name)(*arguments)
    return function


def encode_reply(function: Callable[[], Any]) -> bytes:
    r"""Call a function and encode what it returns or raises.

    Example:
        >>> encode_reply(lambda: 7)
        b'\x92\xc3\x07'
    """
    from msgspec import msgpack

    try:
        reply = msgpack.encode((True, function()))
        if len(reply) > MAX_MESSAGE_BYTES:
            raise ValueError(f"the reply has {len(reply)} bytes, more than {MAX_MESSAGE_BYTES}")
        return reply
    except Exception as error:
        message = str(error)[:MAX_ERROR_CHARS].encode("utf-8", "replace").decode()
        return msgpack.encode((False, (type(error).__name__, message)))


def _send(connection: socket.socket, body: bytes) -> None:
    connection.sendall(len(body).to_bytes(HEADER_BYTES, "little"))
    connection.sendall(body)


def _receive(connection: socket.socket) -> bytes | None:
    """Read a frame; `None` where the other side has closed."""
    header = _read(connection, HEADER_BYTES)
    return None if header is None else _read(connection, int.from_bytes(header, "little"))


def _read(connection: socket.socket, size: int) -> bytes | None:
    data = bytearray()
    while len(data) < size:
        chunk = connection.recv(min(size - len(data), 2**20))
        if not chunk:
            return None
        data += chunk
    return bytes(data)


if __name__ == "__main__":
    main(sys.argv[1:])
