"""Runs a command so that nothing of it survives: not its children, nor they us.

A script of the standard library alone, run as `python guard.py GRACE_S COMMAND …` between icrl and a server. Its
standard input is a pipe from icrl that closes when icrl ends, however that happens. Then, and on SIGTERM, it asks the
command to end, waits GRACE_S seconds, and kills what is left. Everything that the command starts stays below this
process, also what makes a session of its own or loses its parent; so all of it can be found, killed and reaped.

Exits with the command's code (128 + the signal that ended it), or 126 where it cannot be started.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

__all__ = ["main"]

NOT_STARTED = 126
_DEATH_SIGNAL, _SUBREAPER = 1, 36
"""Options of prctl(2): a signal at the parent's death, and adoption of grandchildren."""
_POLL_S = 0.05
_LIBC = ctypes.CDLL(None, use_errno=True)


def main(arguments: Sequence[str]) -> int:
    """Run a command until it ends or the pipe closes, end what is left of it, and return its exit code.

    Args:
        arguments: Seconds between asking and killing, and the command.
    """
    grace_s, command = float(arguments[0]), list(arguments[1:])
    _LIBC.prctl(_SUBREAPER, 1, 0, 0, 0)
    ended, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    try:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, process_group=0, preexec_fn=_die_with_us)
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", file=sys.stderr)  # noqa: T201 - a program of its own
        return NOT_STARTED
    _watch(process, ended)
    _end(process, grace_s)
    return process.returncode if process.returncode >= 0 else 128 - process.returncode


def _die_with_us() -> None:
    """Let the kernel kill the command, should this process be killed; runs between fork and exec."""
    _LIBC.prctl(_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)


def _watch(process: subprocess.Popen[bytes], signals: int) -> None:
    """Wait until the command ended, the pipe closed, or somebody asked for the end."""
    while process.poll() is None:
        readable, _, _ = select.select([sys.stdin, signals], [], [])
        if sys.stdin in readable and not os.read(sys.stdin.fileno(), 1):
            return
        if signals in readable and set(os.read(signals, 64)) & {signal.SIGTERM, signal.SIGINT}:
            return


def _end(process: subprocess.Popen[bytes], grace_s: float) -> None:
    """Ask, wait, kill, and reap everything below this process."""
    if process.poll() is None:
        _send(process.pid, signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    # What outlives the command has lost its purpose, and is not asked.
    while below := _descendants(os.getpid()):
        for pid in below:
            _send(pid, signal.SIGKILL)
        process.wait()
        _reap()
        time.sleep(_POLL_S)


def _send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _reap() -> None:
    """Take the exit codes of adopted processes, so that nothing stays as a zombie."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass


def _descendants(root: int) -> list[int]:
    """Return the processes below one, the nearest first."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            children.setdefault(int(path.read_text().rpartition(") ")[2].split()[1]), []).append(int(path.parent.name))
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found[1:]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
