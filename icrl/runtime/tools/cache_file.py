"""The cache of tool answers on disk: one SQLite file that several processes may use."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from icrl.errors import DataError
from icrl.runtime.tools.keys import CallKey, Kept

__all__ = ["CacheFile"]

APPLICATION_ID = 0x6963726C
"""Marks the file as ours."""
VERSION = 1
BUSY_S = 10.0
"""How long to wait for another process that writes."""
DROPPED_PART = 0.1
"""How much of a full file is dropped at once, oldest first."""

# In one piece: another process must not meet a table without its mark.
_SCHEMA = f"""
    BEGIN IMMEDIATE;
    CREATE TABLE IF NOT EXISTS answers (
        tool TEXT NOT NULL, fingerprint TEXT NOT NULL, arguments TEXT NOT NULL,
        text TEXT NOT NULL, stored_at REAL NOT NULL,
        PRIMARY KEY (tool, fingerprint, arguments)
    );
    PRAGMA application_id = {APPLICATION_ID};
    PRAGMA user_version = {VERSION};
    COMMIT;
"""


class CacheFile:
    """Reads and writes answers; one thread at a time. Every method raises `DataError` where the file is at fault.

    Args:
        path: The file; made if it is not there.
        max_bytes: Bytes of answers to keep.
    """

    def __init__(self, path: Path, *, max_bytes: int) -> None:
        self.path = path
        """The file."""
        self._max_bytes = max_bytes
        self._connection: sqlite3.Connection | None = None

    def open(self) -> sqlite3.Connection:
        """Open the file where it is not open.

        Raises:
            DataError: It cannot be opened, or is something else.
        """
        if self._connection is None:
            with self._explained():
                self._connection = _connect(self.path)
        return self._connection

    def read(self, key: CallKey) -> Kept | None:
        """Return the answer to a call."""
        query = "SELECT text, stored_at FROM answers WHERE tool = ? AND fingerprint = ? AND arguments = ?"
        connection = self.open()
        with self._explained():
            row = connection.execute(query, key).fetchone()
        return None if row is None else Kept(key, row[0], row[1])

    def write(self, answers: Sequence[Kept]) -> None:
        """Write answers, and drop the oldest where the file is full."""
        connection = self.open()
        rows = ((*answer.key, answer.text, answer.stored_at) for answer in answers)
        with self._explained():
            with connection:
                # A replaced row gets a new rowid, so rowids tell the age.
                connection.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?)", rows)
            self._shrink(connection)

    def _shrink(self, connection: sqlite3.Connection) -> None:
        while _used(connection) > self._max_bytes:
            (count,) = connection.execute("SELECT count(*) FROM answers").fetchone()
            if not count:
                return
            oldest = "SELECT rowid FROM answers ORDER BY rowid LIMIT ?"
            with connection:
                connection.execute(f"DELETE FROM answers WHERE rowid IN ({oldest})", (int(count * DROPPED_PART) + 1,))

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError, ValueError) as error:  # ValueError: text that UTF-8 cannot carry
            raise DataError(f"{self.path}: the cache of tool answers failed ({error})") from error

    def close(self) -> None:
        """Close the file."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def _used(connection: sqlite3.Connection) -> int:
    """Return the bytes that rows take."""
    pages, free, size = (
        connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
    )
    return int((pages - free) * size)


def _connect(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path, timeout=BUSY_S, check_same_thread=False)
    try:
        _check(connection)
        # A commit survives the process; only a power cut may cost the last ones.
        _insist(connection, "PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.executescript(_SCHEMA)
    except BaseException:
        connection.close()
        raise
    return connection


def _check(connection: sqlite3.Connection) -> None:
    """Refuse a database that is not ours, before anything is written to it."""
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    (owner,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if tables and (owner, version) != (APPLICATION_ID, VERSION):
        raise sqlite3.DatabaseError("it is another kind of database")


def _insist(connection: sqlite3.Connection, statement: str) -> None:
    """Repeat what another process forbids just now; a change of the journal is refused at once, however long BUSY_S."""
    from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random

    locked = retry_if_exception(lambda error: isinstance(error, sqlite3.OperationalError) and "locked" in str(error))
    again = Retrying(retry=locked, wait=wait_random(0.005, 0.05), stop=stop_after_delay(BUSY_S), reraise=True)
    again(connection.execute, statement)
