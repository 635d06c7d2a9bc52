"""Ctrl-C that saves: the first asks, the second insists."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["on_interrupt"]


@contextmanager
def on_interrupt(ask: Callable[[], None]) -> Iterator[None]:
    """Call `ask` on the first Ctrl-C instead of raising; a second one raises `KeyboardInterrupt`.

    Outside the main thread, where signals cannot be handled, nothing changes.

    Example:
        >>> with on_interrupt(lambda: print("saving")):
        ...     signal.raise_signal(signal.SIGINT)
        saving
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)

    def handle(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, before)
        ask()

    signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
