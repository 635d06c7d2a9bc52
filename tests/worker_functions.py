"""What worker processes do in tests: factories of functions that behave and misbehave."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def obeying(offset: int = 0) -> Callable[[list[Any]], Any]:
    """Do what a request says: `[name, argument]`."""
    count = offset

    def number(_: Any) -> int:
        nonlocal count
        count += 1
        return count

    def complain(message: str) -> None:
        raise KeyError(message)

    def start_another(path: str) -> int:
        code = f"import time, pathlib; pathlib.Path({path!r}).touch(); time.sleep(60)"
        process = subprocess.Popen([sys.executable, "-c", code])
        while not Path(path).exists():
            time.sleep(0.005)
        return process.pid

    deeds: dict[str, Callable[[Any], Any]] = {
        "echo": lambda value: value,
        "pid": lambda _: os.getpid(),
        "count": number,
        "sleep": time.sleep,
        "hang": lambda path: (Path(path).write_text(str(os.getpid())), time.sleep(60)),
        "raise": complain,
        "exit": os._exit,
        "leave": sys.exit,
        "kill": lambda _: os.kill(os.getpid(), signal.SIGKILL),
        "bytes": lambda size: b"x" * size,
        "open": lambda _: sorted(os.listdir("/proc/self/fd")),
        "environment": lambda _: dict(os.environ),
        "print": lambda text: (print(text, flush=True), sys.stdin.read())[1],  # noqa: T201
        "lie": lambda _: os.write(3, (10**12).to_bytes(8, "little") * 2),
        "garble": lambda _: os.write(3, (3).to_bytes(8, "little") + b"\xc1\xc1\xc1"),
        "strange": lambda _: object(),
        "another": start_another,
    }
    return lambda request: deeds[request[0]](request[1])


def refusing(reason: str) -> Callable[[Any], Any]:
    raise ValueError(reason)


def slow(seconds: float) -> Callable[[Any], Any]:
    time.sleep(seconds)
    return lambda request: request


def dying() -> Callable[[Any], Any]:
    os._exit(3)


def touchy_index(directory: str) -> Callable[[Any], list[list[Any]]]:
    """Stand in for a search index: some words end the process, or hang."""

    def search(request: tuple[list[str], int]) -> list[list[Any]]:
        queries, k = request
        with (Path(directory) / "rounds").open("a") as file:
            file.write(f"{len(queries)}\n")
        if "crash" in queries:
            os._exit(1)
        if "hang" in queries:
            (Path(directory) / "hanging").touch()
            signal.pause()
        if "raise" in queries:
            raise KeyError("raise")
        return [[{"id": query, "title": "", "text": query, "score": 1.0}] * k for query in queries]

    return search
