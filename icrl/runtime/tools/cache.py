"""Answers that need not be asked for again."""

from __future__ import annotations

import logging
import sys
import time
from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from icrl.errors import ConfigError, DataError
from icrl.runtime.tools.keys import CallKey, Kept
from icrl.runtime.tools.outbox import Outbox
from icrl.runtime.tools.threads import Threads

if TYPE_CHECKING:
    from icrl.runtime.tools.cache_file import CacheFile

__all__ = ["ToolCache"]

LARGEST_PART = 16
"""An answer may take this fraction of the memory at most."""
MAX_UNWRITTEN = 4096
"""Answers that may wait to be written; further ones are kept in memory only."""
MB = 1 << 20

_LOG = logging.getLogger("icrl.tools")


class _Entry(NamedTuple):
    text: str
    stored_at: float
    size: int


class ToolCache:
    """Answers of repeatable tools, by tool, fingerprint and arguments; errors are never kept.

    In memory the answers used least recently are dropped, in the file the oldest. Several processes may use one file
    at a time. A file that fails while it is used costs its answers and no call: the fault is counted and logged.

    Args:
        path: An SQLite file that outlives the process; without it the answers live in memory only.
        max_mb: MiB of answers in memory.
        max_file_mb: MiB of answers in the file.
        ttl_s: Seconds that an answer stays good; a tool's `cache_ttl_s` may be shorter.

    Raises:
        ConfigError: A bound is not positive.

    Example:
        >>> cache = ToolCache(ttl_s=60.0)
        >>> key = CallKey(tool="search", fingerprint="corpus-1", arguments='{"query":"mayor"}')
        >>> cache.put(key, "Nubar")
        >>> cache.get(key), cache.get(key._replace(fingerprint="corpus-2"))
        ('Nubar', None)
    """

    def __init__(
        self,
        path: Path | None = None,
        *,
        max_mb: float = 256.0,
        max_file_mb: float = 4096.0,
        ttl_s: float | None = None,
    ) -> None:
        for name, value in (("max_mb", max_mb), ("max_file_mb", max_file_mb), ("ttl_s", ttl_s)):
            if value is not None and not value > 0:
                raise ConfigError(f"{name}: must be > 0, not {value!r}")
        self._max_bytes = int(max_mb * MB)
        self._ttl_s = ttl_s
        self._entries: OrderedDict[CallKey, _Entry] = OrderedDict()
        self._bytes = 0
        self._file = None if path is None else _open_file(path, int(max_file_mb * MB))
        self._threads = Threads(name="tool-cache", limit=1)
        self._outbox: Outbox[Kept] = Outbox(self._store, threads=self._threads)
        self.faults = 0
        """How often the file could not be read or written."""

    def __len__(self) -> int:
        return len(self._entries)

    async def open(self) -> None:
        """Open the file, which otherwise happens at the first call.

        Raises:
            DataError: The file cannot be opened, or is something else.
        """
        if self._file is not None:
            await self._threads.run(self._file.open)

    def get(self, key: CallKey, *, ttl_s: float | None = None) -> str | None:
        """Return an answer that is in memory and still good.

        Args:
            key: The call.
            ttl_s: Seconds that its tool's answers stay good.
        """
        entry = self._entries.get(key)
        if entry is None:
            return None
        if not self._fresh(entry.stored_at, ttl_s):
            self._drop(key)
            return None
        self._entries.move_to_end(key)
        return entry.text

    async def find(self, key: CallKey, *, ttl_s: float | None = None) -> str | None:
        """Look an answer up in the file, and keep it in memory."""
        if self._file is None:
            return None
        kept: Kept | None = await self._threads.run(partial(self._read, self._file, key))
        if kept is None or not self._fresh(kept.stored_at, ttl_s):
            return None
        self._keep(key, kept.text, kept.stored_at)
        return kept.text

    def put(self, key: CallKey, text: str) -> None:
        """Keep an answer: at once in memory, soon in the file."""
        now = time.time()
        if self._keep(key, text, now) and self._file is not None and len(self._outbox) < MAX_UNWRITTEN:
            self._outbox.put(Kept(key=key, text=text, stored_at=now))

    async def aclose(self) -> None:
        """Write what is not written yet and close the file; the next use opens it again."""
        if self._file is not None:
            await self._outbox.flush()
            await self._threads.run(self._file.close)
        await self._threads.aclose()

    def _fresh(self, stored_at: float, ttl_s: float | None) -> bool:
        limits = [limit for limit in (ttl_s, self._ttl_s) if limit is not None]
        # A time in the future comes from a clock that was wrong, now or then.
        return not limits or 0 <= time.time() - stored_at <= min(limits)

    def _keep(self, key: CallKey, text: str, stored_at: float) -> bool:
        size = sys.getsizeof(text) + sys.getsizeof(key.arguments)
        if size > self._max_bytes // LARGEST_PART:
            return False
        self._drop(key)
        self._entries[key] = _Entry(text, stored_at, size)
        self._bytes += size
        while self._bytes > self._max_bytes:
            self._drop(next(iter(self._entries)))
        return True

    def _drop(self, key: CallKey) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._bytes -= entry.size

    def _read(self, file: CacheFile, key: CallKey) -> Kept | None:
        try:
            return file.read(key)
        except DataError as error:
            self._fault(error)
            return None

    def _store(self, answers: Sequence[Kept]) -> None:
        assert self._file is not None
        try:
            self._file.write(answers)
        except DataError as error:
            self._fault(error)

    def _fault(self, error: DataError) -> None:
        self.faults += 1
        _LOG.warning("%s; calls go on without it", error)


def _open_file(path: Path, max_bytes: int) -> CacheFile:
    # Most programs have no such file and need not wait for the import of SQLite.
    from icrl.runtime.tools.cache_file import CacheFile

    return CacheFile(path, max_bytes=max_bytes)
