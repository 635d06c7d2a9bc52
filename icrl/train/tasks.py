"""Questions with reference answers, read from JSONL and drawn step by step."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from icrl.errors import ConfigError, DataError, nearest
from icrl.seeds import seed_for
from icrl.train.rewards import normalize
from icrl.types import Task

__all__ = ["TaskSampler", "load_tasks"]

_QUERY = ("question", "query")
_ANSWERS = ("answers", "answer", "golden_answers")
_KEYS = (*_QUERY, *_ANSWERS, "id", "metadata")


def load_tasks(path: Path, *, require_answers: bool = True) -> tuple[Task, ...]:
    """Read tasks from a file with one JSON object a line.

    Keys: `question` (or `query`); `answers` (or `answer`, `golden_answers`), a string, a number or a list of those;
    optionally `id` (otherwise the file's name and the line's number) and `metadata`.

    Args:
        path: The file.
        require_answers: Refuse tasks with neither answers nor tests in their metadata, which cannot be scored.

    Raises:
        DataError: The file cannot be read, is empty, or a line is wrong; the message names the line and the key.
    """
    tasks: list[Task] = []
    lines: dict[str, int] = {}
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        task = _Line(path, number).task(line, require_answers)
        if task.id in lines:
            raise DataError(f"{path}:{number}: id: {task.id!r} was used in line {lines[task.id]} already")
        lines[task.id] = number
        tasks.append(task)
    if not tasks:
        raise DataError(f"{path}: holds no tasks")
    return tuple(tasks)


def _lines(path: Path) -> list[bytes]:
    try:
        return path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    except FileNotFoundError as error:
        siblings = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
        raise DataError(f"{path}: no such file.{nearest(path.name, siblings)}") from error
    except OSError as error:
        raise DataError(f"{path}: cannot read it: {error.strerror}") from error


class _Line:
    """One line of a task file."""

    def __init__(self, path: Path, number: int) -> None:
        self._path = path
        self._number = number

    def task(self, line: bytes, require_answers: bool) -> Task:
        record = self._record(line)
        query = self._one_of(record, _QUERY)
        if not isinstance(query, str) or not query.strip():
            self._refuse(f"question: needs text, not {query!r}" if query is not None else "question: is missing")
        answers = self._answers(self._one_of(record, _ANSWERS))
        metadata = record.get("metadata") or {}
        if not isinstance(metadata, dict):
            self._refuse(f"metadata: needs an object, not {metadata!r}")
        if require_answers and not answers and "tests" not in metadata:
            self._refuse("answers: is missing; a question without reference answers or metadata.tests cannot be scored")
        return Task(query=query, answers=answers, id=self._id(record.get("id")), metadata=metadata)

    def _record(self, line: bytes) -> Mapping[str, Any]:
        try:
            record = msgspec.json.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            self._refuse(f"not valid JSON: {error}")
        if not isinstance(record, dict):
            self._refuse(f"needs a JSON object, not {type(record).__name__}")
        for key in record:
            if key not in _KEYS:
                self._refuse(f"unknown key {key!r}.{nearest(key, _KEYS)} Further facts belong under 'metadata'.")
        return record

    def _one_of(self, record: Mapping[str, Any], names: Sequence[str]) -> Any:
        given = [name for name in names if name in record]
        if len(given) > 1:
            self._refuse(f"{given[1]}: is given as {given[0]!r} too; keep one")
        return record[given[0]] if given else None

    def _answers(self, value: Any) -> tuple[str, ...]:
        items = value if isinstance(value, list) else [] if value is None else [value]
        for item in items:
            if isinstance(item, bool) or not isinstance(item, str | int | float):
                self._refuse(f"answers: needs text or a list of texts, not {item!r}")
            if not normalize(str(item)):
                self._refuse(f"answers: {item!r} is empty after normalisation, so nothing could match it")
        return tuple(map(str, items))

    def _id(self, value: Any) -> str:
        if value is None or value == "":
            return f"{self._path.stem}:{self._number}"
        if isinstance(value, bool) or not isinstance(value, str | int):
            self._refuse(f"id: needs text or a whole number, not {value!r}")
        return str(value)

    def _refuse(self, problem: str) -> NoReturn:
        raise DataError(f"{self._path}:{self._number}: {problem}")


class TaskSampler:
    """Draws the tasks of each step, without keeping state: a resumed run asks for the same step and gets the same.

    An epoch is a fresh shuffle of all tasks; every task is drawn once before any is drawn again.

    Args:
        tasks: What to draw from.
        seed: Selects the shuffles.

    Raises:
        ConfigError: There is nothing to draw from.

    Example:
        >>> sampler = TaskSampler([Task(query=q) for q in "abcd"], seed=0)
        >>> sorted(t.query for step in (0, 1) for t in sampler.batch(step, 2))
        ['a', 'b', 'c', 'd']
    """

    def __init__(self, tasks: Sequence[Task], seed: int) -> None:
        if not tasks:
            raise ConfigError("tasks: there are none to draw from")
        self._tasks = tuple(tasks)
        self._seed = seed
        self._epoch = (-1, self._tasks)

    def batch(self, step: int, n: int) -> tuple[Task, ...]:
        """Return the `n` tasks of step `step`, counted from 0; `n` has to stay the same over a run."""
        return tuple(self._at(position) for position in range(step * n, (step + 1) * n))

    def _at(self, position: int) -> Task:
        epoch, index = divmod(position, len(self._tasks))
        if self._epoch[0] != epoch:
            shuffled = list(self._tasks)
            random.Random(seed_for(self._seed, "tasks", epoch)).shuffle(shuffled)
            self._epoch = (epoch, tuple(shuffled))
        return self._epoch[1][index]
