"""What happens in a forked child: it gives up what it inherited, locks itself, and runs what it is sent."""

from __future__ import annotations

import gc
import io
import json
import mmap
import os
import resource
import signal
import sys
from typing import Any

from icrl.runtime.sandbox import report
from icrl.runtime.sandbox.kernel import prctl
from icrl.runtime.sandbox.language import Language
from icrl.runtime.sandbox.lock import Lock
from icrl.runtime.sandbox.probes import probe

__all__ = ["CONVERSATION", "NOT_LOCKED", "enter", "rehearse", "serve"]

CONVERSATION = 3
"""Descriptor of the socket on which requests come and replies go, one JSON object a line."""
NOT_LOCKED = signal.SIGUSR1
"""How a child ends that could not lock itself. A locked one cannot end this way, so no program can pretend it."""

_SET_DEATH_SIGNAL = 1
_BALLAST_BYTES = 1 << 20
_PREPARED: list[io.TextIOWrapper] = []  # made before the fork, for the first program


def enter(zygote: int, conversation: int, output: int, lock: Lock, limits: dict[str, int]) -> None:
    """Turn a fork of the zygote into a locked child, or end it.

    Args:
        zygote: Process number of the parent; the child dies with it.
        conversation: Descriptor of the socket for requests and replies.
        output: Descriptor of the pipe for what programs print.
        lock: Prepared in the zygote.
        limits: `cpu_s` and `memory_mb`.
    """
    try:
        prctl(_SET_DEATH_SIGNAL, signal.SIGKILL)
        if os.getppid() != zygote:
            os._exit(0)
        os.setsid()
        _keep_only(conversation, output, lock.ruleset)
        _reseed()
        lock.close(**limits)
        gc.enable()
    except BaseException as error:
        os.write(CONVERSATION, json.dumps({"reason": f"{type(error).__name__}: {error}"}).encode() + b"\n")
        os.kill(os.getpid(), NOT_LOCKED)


def _keep_only(conversation: int, output: int, ruleset: int | None) -> None:
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.dup2(conversation, CONVERSATION)
    highest = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if ruleset is None:
        os.closerange(CONVERSATION + 1, highest)
    else:
        os.closerange(CONVERSATION + 1, ruleset)
        os.closerange(ruleset + 1, highest)


def _reseed() -> None:
    """Give this child its own random numbers; `random` does so by itself after a fork."""
    if "numpy.random" in sys.modules:
        # With a number of our own it takes a tenth of the time that it takes without one.
        sys.modules["numpy.random"].seed(int.from_bytes(os.urandom(4)))
    if "sympy.core.random" in sys.modules:
        sys.modules["sympy.core.random"].rng.seed()


def serve(language: Language) -> None:
    """Answer requests until there are no more.

    Args:
        language: As prepared in the zygote.
    """
    lines = _lines()
    namespace = language.namespace()
    for line in lines:
        request = json.loads(line)
        if "probe" in request:
            reply = json.dumps({"found": probe(request["probe"])})
        else:
            reply = _run(language, namespace, request)
        _send(reply.encode() + b"\n")
        if request["last"]:
            return


def rehearse(language: Language, code: str) -> None:
    """Run a program in the zygote as a child would, so that children find everything used before.

    What it prints goes to descriptor 1.
    """
    kept = sys.stdin, sys.stdout, sys.stderr
    _PREPARED.clear()
    _run(language, language.namespace(), {"run": 1, "code": code, "stdin": ""})
    _PREPARED.append(_open_output())
    sys.stdin, sys.stdout, sys.stderr = kept


def _lines() -> Any:
    pending = b""
    while chunk := os.read(CONVERSATION, 1 << 16):
        *lines, pending = (pending + chunk).split(b"\n")
        yield from lines


def _send(data: bytes) -> None:
    while data:
        data = data[os.write(CONVERSATION, data) :]


def _run(language: Language, namespace: dict[str, Any], request: dict[str, Any]) -> str:
    run = request["run"]
    used = resource.getrusage(resource.RUSAGE_SELF)
    ballast = mmap.mmap(-1, _BALLAST_BYTES)  # address space, given back when there is no more
    output = _PREPARED.pop() if _PREPARED else _open_output()
    _redirect(output, request["stdin"])
    try:
        outcome = report.perform(language, namespace, request["code"], first=run == 1)
    except MemoryError:
        ballast.close()
        namespace.clear()
        outcome = report.OUT_OF_MEMORY
    except BaseException:  # whatever the program did to the interpreter that its own failure cannot be told
        outcome = report.UNTOLD
    try:
        output.flush()
        now = resource.getrusage(resource.RUSAGE_SELF)
        cpu_s = now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime
        return json.dumps({**outcome, "run": run, "cpu_s": cpu_s, "max_rss_mb": now.ru_maxrss / 1024})
    except BaseException:
        return json.dumps({**report.UNTOLD, "run": run, "cpu_s": 0.0, "max_rss_mb": 0.0})


def _open_output() -> io.TextIOWrapper:
    # Unbuffered: what was printed before a kill must be in the pipe by then.
    raw = io.FileIO(1, "w", closefd=False)
    return io.TextIOWrapper(raw, "utf-8", errors="backslashreplace", newline="\n", write_through=True)


def _redirect(output: io.TextIOWrapper, text: str) -> None:
    sys.stdout = sys.stderr = sys.__stdout__ = sys.__stderr__ = output  # type: ignore[misc]
    sys.stdin = sys.__stdin__ = io.StringIO(text)  # type: ignore[assignment,misc]
