"""Attempts at what a locked child must not be able to do, made from inside one before any program is run."""

from __future__ import annotations

import errno
import mmap
import os
import resource
import socket
from collections.abc import Callable, Mapping

from icrl.runtime.sandbox.kernel import call, prctl
from icrl.runtime.sandbox.syscalls import current

__all__ = ["FATAL", "PROBES", "probe"]

_GET_NO_NEW_PRIVS = 39
_MAP_NORESERVE = 0x4000
_FOREIGN_GETPID = 0x40000000 + 39
FATAL = "foreign calls"
"""The probe that a locked child does not survive; where there are no foreign calls, it has nothing to do."""


def probe(names: list[str]) -> dict[str, str]:
    """Make attempts, and return what came of those that succeeded.

    Args:
        names: Keys of `PROBES`, or `FATAL`.
    """
    found = {}
    for name in names:
        attempt = _foreign_call if name == FATAL else PROBES[name][1]
        try:
            result = attempt()
        except (OSError, ValueError, RuntimeError, MemoryError):
            continue
        if result:
            found[name] = result
    return found


def _read_elsewhere() -> str:
    for path in ("/etc/passwd", "/etc/hostname", "/proc/version"):
        if os.path.exists(path):
            with open(path, "rb") as file:
                return f"read {len(file.read(16))} bytes of {path}"
    return ""


def _read_environment() -> str:
    with open("/proc/self/environ", "rb") as file:
        return f"read {len(file.read())} bytes of /proc/self/environ"


def _list_root() -> str:
    return f"listed {len(os.listdir('/'))} entries of /"


def _create_file() -> str:
    # RLIMIT_FSIZE stops data, but an empty file comes into being without the other layers.
    path = os.path.join("/tmp", f"icrl-probe-{os.getpid()}")
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    os.unlink(path)
    return f"created {path}"


def _create_directory() -> str:
    path = f"/tmp/icrl-probe-{os.getpid()}"
    os.mkdir(path)
    os.rmdir(path)
    return f"created {path}"


def _internet_socket() -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM):
        return "opened an internet socket"


def _local_socket() -> str:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM):
        return "opened a local socket"


def _fork() -> str:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return "forked"


def _execute() -> str:
    # A path without a program: to come as far as finding that out is too far.
    try:
        os.execv("/icrl-probe-does-not-exist", ["probe"])
    except FileNotFoundError:
        return "asked for a program to be executed"


def _signal() -> str:
    os.kill(os.getppid(), 0)
    return "sent a signal to its parent"


def _raise_limit() -> str:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return "set a limit"


def _write_and_execute() -> str:
    mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC).close()
    return "mapped memory to write and execute"


def _trace() -> str:
    return _reach("ptrace", 1, os.getpid(), 0, 0)  # to peek at what it does not trace


def _rings() -> str:
    return _reach("io_uring_setup", 0, None)


def _other_memory() -> str:
    return _reach("userfaultfd", -1)


def _reach(name: str, *arguments: int | None) -> str:
    """Make a call that fails anyway: any answer but the filter's comes from behind it."""
    try:
        call(current().numbers[name], *arguments)
    except OSError as error:
        return "" if error.errno == errno.EPERM else f"reached {name}: {error}"
    return f"called {name}"


def _memory() -> str:
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    size = limit if limit > 0 else 1 << 44
    mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE).close()
    return f"mapped {size >> 20} MiB"


def _limits() -> str:
    names = ("FSIZE", "NPROC", "CORE", "CPU", "NOFILE")
    limits = {name: resource.getrlimit(getattr(resource, f"RLIMIT_{name}")) for name in names}
    most = {"CPU": 1 << 20, "NOFILE": 64}
    loose = [n for n, (_, hard) in limits.items() if hard == resource.RLIM_INFINITY or hard > most.get(n, 0)]
    return f"no limit on {', '.join(loose)}" if loose else ""


def _privileges() -> str:
    return "" if prctl(_GET_NO_NEW_PRIVS) == 1 else "may gain privileges"


def _inherited() -> str:
    descriptors = [number for number in range(4, 64) if _is_open(number)]
    allowed = {
        "LC_CTYPE",
        "LC_ALL",
        "OMP_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "MKL_NUM_THREADS",
        "TZ",
        "PYTHONHASHSEED",
    }
    names = sorted(set(os.environ) - allowed)
    return f"inherited descriptors {descriptors}, variables {names}" if descriptors or names else ""


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def _foreign_call() -> str:
    if current().foreign_bit is None:
        return ""
    try:
        call(_FOREIGN_GETPID)
    except OSError as error:
        return f"survived a call of a foreign interface: {error}"
    return "made a call of a foreign interface"


PROBES: Mapping[str, tuple[tuple[str, ...], Callable[[], str]]] = {
    "memory": (("rlimits",), _memory),
    "limits": (("rlimits",), _limits),
    "privileges": (("privileges",), _privileges),
    "reading elsewhere": (("landlock",), _read_elsewhere),
    "reading the environment": (("landlock",), _read_environment),
    "listing": (("landlock",), _list_root),
    "creating a file": (("landlock", "seccomp"), _create_file),
    "creating a directory": (("landlock", "seccomp"), _create_directory),
    "internet socket": (("seccomp",), _internet_socket),
    "local socket": (("seccomp",), _local_socket),
    "fork": (("seccomp",), _fork),
    "execute": (("seccomp",), _execute),
    "signal": (("landlock", "seccomp"), _signal),
    "raising a limit": (("seccomp",), _raise_limit),
    "write and execute": (("seccomp",), _write_and_execute),
    "trace": (("seccomp",), _trace),
    "io_uring": (("seccomp",), _rings),
    "page faults": (("seccomp",), _other_memory),
    "inheritance": ((), _inherited),
}
"""Attempts by name, each with the layers that stop it, any of them alone; the zygote's making stops the last. An
attempt returns what it achieved, or nothing, or raises."""
