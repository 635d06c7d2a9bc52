"""Runs of tools written down, and played again without the tools."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from icrl.errors import ConfigError, DataError, SandboxError
from icrl.runtime.tools.keys import canonical
from icrl.runtime.tools.outbox import Outbox
from icrl.runtime.tools.threads import Threads
from icrl.wire import decode, encode

__all__ = ["Answer", "Entry", "Journal", "Place", "Recorder", "Replayer"]

SHOWN_CHARS = 200
"""How much of a call's arguments a message shows."""


class Answer(NamedTuple):
    """What a model is shown, and whether it was an error."""

    text: str
    """The text."""
    error: str | None
    """Class name of what went wrong."""
    truncated: bool
    """Whether the text was cut."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a call stands among all calls of a run: the same in every repetition of the run."""

    session: str
    """The trajectory's id."""
    round: int
    """How many trajectories of this id had ended before."""
    tool: str
    """The tool's name."""
    fingerprint: str
    """What decides the tool's answers besides the arguments."""
    arguments: str
    """The arguments, canonical."""
    occurrence: int
    """How many equal calls the session had made before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One line of a journal."""

    place: Place
    """The call."""
    text: str
    """What was answered."""
    error: str | None
    """Class name of what went wrong."""
    truncated: bool
    """Whether the text was cut."""


class Journal(Protocol):
    """Stands between a toolbox and its tools."""

    async def answer(self, place: Place, run: Callable[[], Awaitable[Answer]]) -> Answer:
        """Return the answer for a place; `run` would ask the tool."""
        ...

    def place(self, session: str, tool: str, fingerprint: str, arguments: Mapping[str, Any]) -> Place:
        """Number a call."""
        ...

    def end(self, session: str) -> None:
        """Forget a session's numbers; its id may begin another round."""
        ...

    async def aclose(self) -> None:
        """Finish."""
        ...


class _Places:
    """Numbers calls within their sessions, so that trajectories in flight at once do not mix."""

    def __init__(self) -> None:
        self._rounds: Counter[str] = Counter()
        self._made: dict[str, Counter[tuple[str, str, str]]] = {}

    def place(self, session: str, tool: str, fingerprint: str, arguments: Mapping[str, Any]) -> Place:
        """Number a call.

        Raises:
            DataError: The arguments are not JSON.
        """
        written = canonical(arguments)
        if written is None:
            raise DataError(f"journal: the arguments of a call of {tool!r} are not JSON")
        made = self._made.setdefault(session, Counter())
        made[tool, fingerprint, written] += 1
        return Place(
            session=session,
            round=self._rounds[session],
            tool=tool,
            fingerprint=fingerprint,
            arguments=written,
            occurrence=made[tool, fingerprint, written] - 1,
        )

    def end(self, session: str) -> None:
        """Forget a session's numbers; its id may begin another round."""
        self._made.pop(session, None)
        self._rounds[session] += 1


class Recorder(_Places):
    """Writes every answer of a toolbox to a file, as one line of JSON, while the tools run as ever.

    Args:
        path: A file that does not exist; it is made at once (blocking).

    Raises:
        ConfigError: The file exists or cannot be made.

    Example:
        >>> import asyncio, tempfile
        >>> from icrl.runtime.tools.toolbox import Toolbox
        >>> from icrl.testing import EchoTool
        >>> from icrl.types import ToolCall
        >>> async def ask(tool, journal):
        ...     toolbox = Toolbox([tool], journal=journal)
        ...     call = ToolCall(name="echo", arguments={"text": "hi"})
        ...     result = await toolbox.run(call, deadline_s=5.0, session="t-1")
        ...     await toolbox.aclose()
        ...     return result.text
        >>> path = Path(tempfile.mkdtemp()) / "tools.jsonl"
        >>> asyncio.run(ask(EchoTool(), Recorder(path)))
        'hi'
        >>> never_called = EchoTool()
        >>> asyncio.run(ask(never_called, Replayer(path))), never_called.calls
        ('hi', [])
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        try:
            if path.exists():
                raise ConfigError(f"journal: {path} exists; replay it, or record into another file")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(exist_ok=False)
        except OSError as error:
            raise ConfigError(f"journal: {path} cannot be written ({error.strerror})") from error
        self._threads = Threads(name="tool-journal", limit=1)
        self._outbox: Outbox[Entry] = Outbox(self._append, threads=self._threads)

    async def answer(self, place: Place, run: Callable[[], Awaitable[Answer]]) -> Answer:
        """Ask the tool and write its answer down.

        Raises:
            SandboxError: Isolation broke, which is written down too.
            DataError: The file can no longer be written.
        """
        try:
            answer = await run()
        except SandboxError as error:
            self._outbox.put(Entry(place=place, text=str(error), error=SandboxError.__name__, truncated=False))
            raise
        self._outbox.put(Entry(place=place, text=answer.text, error=answer.error, truncated=answer.truncated))
        return answer

    async def aclose(self) -> None:
        """Write what is not written yet.

        Raises:
            DataError: The file can no longer be written.
        """
        try:
            await self._outbox.flush()
        finally:
            await self._threads.aclose()

    def _append(self, entries: Sequence[Entry]) -> None:
        try:
            with self._path.open("ab") as file:
                file.write(b"".join(encode(entry) + b"\n" for entry in entries))
        except (OSError, ValueError) as error:
            raise DataError(f"{self._path}: tool answers cannot be recorded ({error})") from error


class Replayer(_Places):
    """Answers every call as a `Recorder` saw it answered; no tool is run.

    Args:
        path: What a `Recorder` wrote; it is read at once (blocking).

    Raises:
        DataError: The file cannot be read or is damaged; the message names the line.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self._answers = dict(_load(path))

    async def answer(self, place: Place, run: Callable[[], Awaitable[Answer]]) -> Answer:
        """Return what was answered then.

        Raises:
            SandboxError: Isolation broke then.
            DataError: The call was not made then; going on would not repeat the run.
        """
        answer = self._answers.get(place)
        if answer is None:
            raise DataError(f"{self._path}: {self._describe(place)}")
        if answer.error == SandboxError.__name__:
            raise SandboxError(answer.text)
        return answer

    async def aclose(self) -> None:
        """Nothing is open."""

    def _describe(self, place: Place) -> str:
        shown = place.arguments[:SHOWN_CHARS]
        call = f"call {place.occurrence + 1} of {place.tool}({shown}) in session {place.session!r} is not recorded"
        others = {other.fingerprint for other in self._answers if other.tool == place.tool} - {place.fingerprint}
        if others and not any(other.fingerprint == place.fingerprint for other in self._answers):
            return f"{call}; {place.tool} was recorded as {min(others)!r} and is {place.fingerprint!r} now"
        return f"{call}; the run took another course, or the call was cancelled when it was recorded"


def _load(path: Path) -> list[tuple[Place, Answer]]:
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    loaded = []
    for number, line in enumerate(lines, start=1):
        try:
            entry = decode(line, Entry)
        except DataError as error:
            raise DataError(f"{path}:{number}: {error}") from error
        loaded.append((entry.place, Answer(entry.text, entry.error, entry.truncated)))
    return loaded
