"""The warm process that programs are forked from. It never sees a program: its children read them, once locked.

It is started by `icrl.runtime.sandbox.process` as a fresh interpreter with an empty environment and one socket. It
stays single-threaded, so that a fork copies all of it.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import resource
import select
import socket
import sys
from typing import Any, NoReturn

from icrl.errors import SandboxError
from icrl.runtime.sandbox import cell
from icrl.runtime.sandbox.language import Language
from icrl.runtime.sandbox.lock import Lock
from icrl.runtime.sandbox.sharing import collapse_memory

__all__ = ["main"]

_MAX_MESSAGE = 1 << 16
_MAX_FILES = 4096
# The interpreter rewrites code that runs often, once for all children if it happens here.
_REHEARSALS = 16
_SMALL = "print(sum(range(3)))\n'done'"
_PAGE_MIB = resource.getpagesize() / (1 << 20)


def main(control: socket.socket, setup: dict[str, Any]) -> None:
    """Import, warm up, say so, and fork on request until the other end of the socket is gone.

    Args:
        control: A `SOCK_SEQPACKET` socket; each message is one JSON object.
        setup: `language`, `packages`, `modules`, `snippets`, `layers`, `roots`, `partial`.
    """
    try:
        language = _warm(setup)
        lock = Lock.prepare(setup["layers"], setup["roots"], partial=setup["partial"])
        _settle(setup["roots"])
    except ModuleNotFoundError as error:
        _fail(control, reason=str(error), missing=error.name)
    except BaseException as error:
        _fail(control, reason=f"{type(error).__name__}: {error}", is_layer=isinstance(error, SandboxError))
    _tell(control, kind="ready", address_space_mb=_address_space_mb(), layers=sorted(lock.layers))
    try:
        _Nursery(control, language, lock).serve()
    finally:
        os._exit(0)


def _fail(control: socket.socket, **why: Any) -> NoReturn:
    _tell(control, kind="failed", **why)
    os._exit(1)


def _warm(setup: dict[str, Any]) -> Language:
    """Make the language and run what programs often run, so that every child finds the caches filled."""
    for package in setup["packages"]:
        importlib.import_module(package)
    module, _, function = setup["language"].partition(":")
    language: Language = getattr(importlib.import_module(module), function)()
    language.prepare(tuple(setup["modules"]))
    for snippet in [*setup["snippets"], *[_SMALL] * _REHEARSALS]:
        cell.rehearse(language, snippet)
    return language


def _settle(roots: list[str]) -> None:
    """Leave nothing that a child has to undo: no user code on the path, no garbage, no directory, no other thread."""
    os.chdir("/")
    sys.path[:] = [path for path in sys.path if any(path == root or path.startswith(root + "/") for root in roots)]
    sys.dont_write_bytecode = True
    importlib.invalidate_caches()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, _MAX_FILES) if hard > 0 else _MAX_FILES, hard))
    _assert_single_threaded()
    gc.collect()
    collapse_memory()
    gc.freeze()
    gc.disable()


def _assert_single_threaded() -> None:
    threads = os.stat("/proc/self/task").st_nlink - 2  # the kernel counts them there
    if threads != 1:
        raise RuntimeError(f"{threads} threads run where only one may: a fork would copy their locks without them")


def _address_space_mb() -> float:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[0]) * _PAGE_MIB


def _tell(control: socket.socket, descriptor: int | None = None, **message: Any) -> None:
    socket.send_fds(control, [json.dumps(message).encode()], [] if descriptor is None else [descriptor])


class _Nursery:
    """The loop of the zygote: fork when asked to, reap when one ends, report both."""

    def __init__(self, control: socket.socket, language: Language, lock: Lock) -> None:
        self._control = control
        self._language = language
        self._lock = lock
        self._pid = os.getpid()
        self._children: dict[int, tuple[int, int]] = {}  # process descriptor: name, process number
        self._poll = select.epoll()
        self._poll.register(control.fileno(), select.EPOLLIN)

    def serve(self) -> None:
        while True:
            for descriptor, _ in self._poll.poll():
                if descriptor in self._children:
                    self._reap(descriptor)
                elif not self._answer():
                    return

    def _answer(self) -> bool:
        message, descriptors, _, _ = socket.recv_fds(self._control, _MAX_MESSAGE, 2)
        if not message:
            return False
        request = json.loads(message)
        try:
            self._fork(request, *descriptors)
        except OSError as error:
            _tell(self._control, kind="unforked", child=request["child"], reason=str(error))
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        return True

    def _fork(self, request: dict[str, Any], conversation: int, output: int) -> None:
        _assert_single_threaded()
        pid = os.fork()
        if pid == 0:
            try:
                limits = {"cpu_s": request["cpu_s"], "memory_mb": request["memory_mb"]}
                cell.enter(self._pid, conversation, output, self._lock, limits)
                cell.serve(self._language)
                os._exit(0)
            finally:
                os._exit(1)
        # It cannot have been reaped yet, so the number still means it; later only the descriptor surely does.
        descriptor = os.pidfd_open(pid)
        self._children[descriptor] = (request["child"], pid)
        self._poll.register(descriptor, select.EPOLLIN)
        _tell(self._control, descriptor, kind="forked", child=request["child"])

    def _reap(self, descriptor: int) -> None:
        child, pid = self._children.pop(descriptor)
        _, status, usage = os.wait4(pid, 0)
        self._poll.unregister(descriptor)
        os.close(descriptor)
        cpu_s = usage.ru_utime + usage.ru_stime
        _tell(self._control, kind="ended", child=child, status=status, cpu_s=cpu_s, max_rss_mb=usage.ru_maxrss / 1024)
