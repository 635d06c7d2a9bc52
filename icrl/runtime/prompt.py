"""Worked examples as data: a YAML list, or JSONL with one example a line."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from os import PathLike
from pathlib import Path
from typing import Any

import msgspec
import yaml

from icrl.errors import DataError, nearest
from icrl.types import Demonstration, Step

__all__ = ["load_demonstrations"]

_RENAMED = {"question": "query"}


def load_demonstrations(path: str | PathLike[str]) -> tuple[Demonstration, ...]:
    """Load worked examples.

    A record has `question` (or `query`), `answer`, and optionally `thought` and `steps`, a list of
    `{tool, arguments, result, thought}`.

    Args:
        path: A `.jsonl` file, or a `.yaml` or `.yml` file holding a list.

    Raises:
        DataError: The file cannot be read or holds nothing, or a record is wrong; the message has file, line and field.

    Example:
        >>> from icrl.tiny import DEMONSTRATIONS
        >>> load_demonstrations(DEMONSTRATIONS)[0].steps[0].tool
        'search'
    """
    path = Path(path)
    readers = {".jsonl": _json_lines, ".yaml": _yaml_items, ".yml": _yaml_items}
    if path.suffix not in readers:
        raise DataError(f"{path}: demonstrations are read from .jsonl, .yaml or .yml files, not {path.suffix!r}")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    loaded = tuple(_demonstration(record, f"{path}:{line}") for line, record in readers[path.suffix](text, path))
    if not loaded:
        raise DataError(f"{path}: holds no demonstrations")
    return loaded


def _json_lines(text: str, path: Path) -> Iterator[tuple[int, Any]]:
    for line, content in enumerate(text.split("\n"), start=1):
        if content.strip():
            try:
                yield line, msgspec.json.decode(content)
            except (msgspec.DecodeError, msgspec.ValidationError) as error:
                raise DataError(f"{path}:{line}: {error}") from error


def _yaml_items(text: str, path: Path) -> Iterator[tuple[int, Any]]:
    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        if root is not None and not isinstance(root, yaml.SequenceNode):
            raise DataError(f"{path}:{root.start_mark.line + 1}: must be a list of demonstrations")
        for node in root.value if root is not None else ():
            yield node.start_mark.line + 1, loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise DataError(f"{path}:{line}: {error.problem}") from error
    except yaml.YAMLError as error:
        raise DataError(f"{path}: {error}") from error


def _demonstration(record: Any, place: str) -> Demonstration:
    record = _known(record, Demonstration, place, "", also=_RENAMED)
    for key, name in _RENAMED.items():
        if key in record and name in record:
            raise DataError(f"{place}: {key} and {name} are the same field; give one")
    steps = record.get("steps", [])
    if isinstance(steps, list):
        for index, step in enumerate(steps):
            _known(step, Step, place, f"steps[{index}].")
    try:
        return msgspec.convert({_RENAMED.get(key, key): value for key, value in record.items()}, Demonstration)
    except msgspec.ValidationError as error:
        bare = re.match("Expected `str`, got `(int|float|bool)`", str(error))
        hint = "; put it in quotes" if bare else ""
        raise DataError(f"{place}: {error}{hint}") from error


def _known(record: Any, kind: type, place: str, within: str, also: Iterable[str] = ()) -> Mapping[str, Any]:
    """Refuse a record with a field that its type does not have."""
    if not isinstance(record, Mapping):
        raise DataError(f"{place}: {within.rstrip('.') or 'a demonstration'} must be a mapping, not {record!r}")
    names = [*(field.name for field in fields(kind)), *also]
    for key in record:
        if key not in names:
            raise DataError(f"{place}: {within}{key} is not a field.{nearest(str(key), names)}")
    return record
