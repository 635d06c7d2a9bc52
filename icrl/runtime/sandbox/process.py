"""A zygote, seen from the process that serves: start it, fork from it, notice its death."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Sequence

import msgspec

from icrl.errors import MissingExtraError, SandboxError
from icrl.runtime.sandbox.child import Child, Stuck
from icrl.runtime.sandbox.messages import Ended, Failed, Forked, Notice, Ready, Unforked, decode_notice, encode
from icrl.runtime.sandbox.profiles import EXTRA_PACKAGES

__all__ = ["FIX", "Setup", "ZygoteProcess"]

_BOOT = """
import json, os, resource, socket, sys
os.closerange(4, min(resource.getrlimit(resource.RLIMIT_NOFILE)[0], 1 << 20))
control = socket.socket(fileno=3)
setup = json.loads(control.recv(1 << 20))
sys.path[:] = setup.pop("paths")
from icrl.runtime.sandbox.zygote import main
main(control, setup)
"""
# Sets print in the same order in every run; libraries compute in one thread; dates are those of no place.
_ENVIRONMENT = {
    "PYTHONHASHSEED": "0",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TZ": "UTC",
}
FIX = (
    "Run on Linux >= 5.13, x86-64 or aarch64, with Landlock enabled (`lsm=landlock,...` at boot) and seccomp filters,"
    " or say allow_unsandboxed=True to run programs without isolation."
)
"""What somebody can do whose system lacks a layer."""
_START_S = 120.0
_STOP_S = 10.0
_MAX_MESSAGE = 1 << 16


class Setup(msgspec.Struct, frozen=True, kw_only=True):
    """What a zygote is told at its start."""

    paths: list[str]
    """Where it finds its modules."""
    roots: list[str]
    """Directories that its children may read."""
    layers: Sequence[str]
    """What its children lock."""
    partial: bool
    """Whether it does without a layer that the kernel lacks."""
    language: str
    """`module:function`, which returns the language."""
    packages: Sequence[str]
    """Installed packages that it cannot do without."""
    modules: Sequence[str]
    """What to import in advance, where it is to be had."""
    snippets: Sequence[str]
    """What to run in advance."""


class ZygoteProcess:
    """A zygote that runs. Make one with `start`."""

    def __init__(self, pid: int, control: socket.socket) -> None:
        self._loop = asyncio.get_running_loop()
        self._pid = pid
        self._descriptor = os.pidfd_open(pid)
        self._control = control
        self._children: dict[int, Child] = {}
        self._started: asyncio.Future[Ready | Failed] = self._loop.create_future()
        self._stopped: asyncio.Future[int] = self._loop.create_future()
        self._emptied: asyncio.Event = asyncio.Event()
        self._is_killed = False
        self.forks = 0
        self.address_space_mb = 0.0
        self.layers: tuple[str, ...] = ()
        control.setblocking(False)
        self._loop.add_reader(control, self._on_notice)
        self._loop.add_reader(self._descriptor, self._on_stopped)

    @classmethod
    async def start(cls, setup: Setup) -> ZygoteProcess:
        """Start a fresh interpreter with nothing of this process in it, and wait until it is warm.

        Raises:
            SandboxError: It cannot start, or its children could not be locked.
            MissingExtraError: It needs a package that is not installed.
        """
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with far:
            zygote = cls(_spawn(far.fileno()), near)
        try:
            near.send(encode(setup))
            async with asyncio.timeout(_START_S):
                ready = await zygote._started
        except TimeoutError:
            await zygote.aclose()
            raise SandboxError(f"a process of the sandbox did not start within {_START_S:g} s") from None
        except BaseException:
            await zygote.aclose()
            raise
        if isinstance(ready, Failed):
            await zygote.aclose()
            raise _failure(ready)
        zygote.address_space_mb, zygote.layers = ready.address_space_mb, tuple(ready.layers)
        return zygote

    @property
    def pid(self) -> int:
        """Its process number."""
        return self._pid

    @property
    def alive(self) -> bool:
        """Whether it can fork."""
        return not self._is_killed and self._control.fileno() >= 0

    async def fork(self, *, cpu_s: int, memory_mb: int) -> Child:
        """Ask for a child, without waiting for it.

        Args:
            cpu_s: Processor seconds that it may use.
            memory_mb: MiB of address space that it may have.

        Raises:
            Stuck: The zygote does not listen.
        """
        self.forks += 1
        child = Child(self.forks)
        self._children[child.name] = child
        self._emptied.clear()
        request = {"child": child.name, "cpu_s": cpu_s, "memory_mb": memory_mb}
        try:
            await self._send(encode(request), child.far_ends)
        except BaseException:
            del self._children[child.name]
            child.free()
            raise
        finally:
            child.sent()
        return child

    async def _send(self, message: bytes, descriptors: Sequence[int]) -> None:
        for _ in range(1000):
            try:
                socket.send_fds(self._control, [message], list(descriptors))
            except BlockingIOError:
                await asyncio.sleep(0.01)
            except OSError as error:
                raise Stuck(f"it is gone: {error}") from error
            else:
                return
        raise Stuck("its queue stays full")

    def _on_notice(self) -> bool:
        """Take one notice; return whether there may be more."""
        try:
            received = socket.recv_fds(self._control, _MAX_MESSAGE, 1, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return False
        except OSError:
            received = b"", [], 0, None
        message, descriptors, _, _ = received
        if not message:
            self._hang_up()
            self.kill()
            return False
        self._heed(decode_notice(message), descriptors)
        return True

    def _heed(self, notice: Notice, descriptors: list[int]) -> None:
        if isinstance(notice, Ready | Failed):
            if not self._started.done():
                self._started.set_result(notice)
            return
        child = self._children[notice.child]
        if isinstance(notice, Forked):
            child.on_forked(*descriptors)
            return
        del self._children[notice.child]
        if isinstance(notice, Ended):
            child.on_ended(notice)
        elif isinstance(notice, Unforked):
            child.on_unforked(notice.reason)
        if not self._children:
            self._emptied.set()

    def _on_stopped(self) -> None:
        """Reap it; its children died with it."""
        while self._control.fileno() >= 0 and self._on_notice():
            pass  # what it still said counts
        self._loop.remove_reader(self._descriptor)
        self._hang_up()
        _, status = os.waitpid(self._pid, os.WNOHANG)
        os.close(self._descriptor)
        self._stopped.set_result(status)
        if not self._started.done():
            self._started.set_result(Failed(reason=f"it ended with status {status} before it was ready"))
        for child in self._children.values():
            child.on_ended(None)
        self._children.clear()
        self._emptied.set()

    def kill(self) -> None:
        """Kill it and with it its children, at once."""
        self._is_killed = True
        if not self._stopped.done():
            signal.pidfd_send_signal(self._descriptor, signal.SIGKILL)

    async def drain(self) -> None:
        """Wait until the last child has ended."""
        if self._children:
            await self._emptied.wait()

    async def aclose(self) -> None:
        """Kill the children, wait until they are reaped, and end the zygote."""
        for child in self._children.values():
            child.kill("abandoned")
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_STOP_S):
                    await self.drain()
        finally:
            self.kill()
            try:
                await asyncio.wait({self._stopped}, timeout=_STOP_S)
            finally:
                self._hang_up()

    def _hang_up(self) -> None:
        if self._control.fileno() >= 0:
            self._loop.remove_reader(self._control)
            self._control.close()

    def abandon(self) -> None:
        """Kill and reap it although its event loop no longer runs."""
        if not self._stopped.done():
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
            self._loop.remove_reader(self._descriptor)
            os.close(self._descriptor)
            for child in self._children.values():
                child.free()
        self._hang_up()


def _failure(failed: Failed) -> SandboxError | MissingExtraError:
    if failed.missing in EXTRA_PACKAGES:
        return MissingExtraError(failed.missing, extra="sandbox")
    fix = f". {FIX}" if failed.is_layer else ""
    return SandboxError(f"a process of the sandbox could not start: {failed.reason}{fix}")


def _spawn(control: int) -> int:
    """Start the interpreter; of our descriptors it keeps the socket, as number 3."""
    command = [sys.executable, "-S", "-s", "-P", "-c", _BOOT]
    actions = [
        (os.POSIX_SPAWN_DUP2, control, 3),
        *((os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in range(3)),
    ]
    try:
        return os.posix_spawn(
            sys.executable,
            command,
            _ENVIRONMENT,
            file_actions=actions,
            setsid=True,
            setsigmask=[],
            setsigdef=[signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGXCPU],
        )
    except OSError as error:
        raise SandboxError(f"a process of the sandbox could not start: {error}") from error
