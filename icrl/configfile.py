"""The file form of settings: YAML read by the types of a dataclass, and written back.

Scalars are kept as text until a field's type says what they are, so `3:40` is a string where a string is wanted (YAML
1.1 makes it a number in base 60) and `3e-4` is a float (YAML 1.1 makes it a string). Every message names the file, the
line and the setting.
"""

from __future__ import annotations

import dataclasses
import difflib
import enum
import re
import types
import typing
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NoReturn, Union

import yaml

from icrl.errors import ConfigError

__all__ = ["dump", "hints", "names", "read", "suggest"]

_NULLS = frozenset({"", "~", "null", "Null", "NULL", "None"})
_BOOLEANS = {"true": True, "false": False}
_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path"}


def hints(cls: type[Any]) -> dict[str, Any]:
    """Return the type of every field of a dataclass, in order."""
    resolved = typing.get_type_hints(cls)
    return {f.name: resolved[f.name] for f in dataclasses.fields(cls)}


def names(cls: type[Any], prefix: str = "") -> Iterator[str]:
    """Iterate over the dotted names of all settings.

    Example:
        >>> from icrl.trajectory import VersionSpan
        >>> list(names(VersionSpan))
        ['version', 'start', 'end']
    """
    for name, kind in hints(cls).items():
        if dataclasses.is_dataclass(kind):
            yield from names(typing.cast("type[Any]", kind), f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def suggest(name: str, known: Iterable[str]) -> str | None:
    """Return the dotted name that was probably meant; a nested one may be written without its prefix.

    Example:
        >>> suggest("temprature", ["sampling.temperature", "steps"])
        'sampling.temperature'
    """
    by_last_part = {dotted.rpartition(".")[2]: dotted for dotted in known}
    choices = {**by_last_part, **{dotted: dotted for dotted in by_last_part.values()}}
    close = difflib.get_close_matches(name, choices, n=1) or difflib.get_close_matches(
        name.rpartition(".")[2], choices, n=1
    )
    return choices[close[0]] if close else None


def dump(instance: Any, path: Path) -> None:
    """Write every setting of a dataclass instance, defaults included; `read` is the inverse.

    Raises:
        ConfigError: The file cannot be written.
    """
    text = yaml.dump(_plain(instance), Dumper=_Dumper, sort_keys=False)
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot write the settings: {error.strerror}") from error


class _Dumper(yaml.SafeDumper):
    """Quotes the text `None`, because the reader takes it for null where it stands bare."""


_Dumper.add_implicit_resolver("tag:yaml.org,2002:null", re.compile("^None$"), ["N"])


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, enum.Enum):
        return _plain(value.value)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def read(path: Path, cls: type[Any]) -> dict[str, Any]:
    """Read the settings that a file gives; nested dataclasses become nested dictionaries.

    Raises:
        ConfigError: The file cannot be read, or holds an unknown setting or a value of the wrong type.
    """
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot read the settings: {getattr(error, 'strerror', error)}") from error
    except yaml.YAMLError as error:
        raise ConfigError(_syntax(path, error)) from error
    return {} if root is None else _Place(path=path, names=tuple(names(cls))).fields(root, cls)


def _syntax(path: Path, error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    line = "" if mark is None else f":{mark.line + 1}"
    return f"{path}{line}: not valid YAML: {getattr(error, 'problem', None) or error}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Where in a file a value stands; turns nodes of the YAML tree into values."""

    path: Path
    """The file."""
    names: tuple[str, ...]
    """All dotted names that may be set."""
    key: str = ""
    """Dotted name of the setting."""

    def refuse(self, node: yaml.Node, problem: str) -> NoReturn:
        where = f"{self.key}: " if self.key else ""
        raise ConfigError(f"{self.path}:{node.start_mark.line + 1}: {where}{problem}")

    def fields(self, node: yaml.Node, cls: type[Any]) -> dict[str, Any]:
        if not isinstance(node, yaml.MappingNode):
            self.refuse(node, "needs settings, one `name: value` a line")
        kinds, values = hints(cls), dict[str, Any]()
        for key, item in node.value:
            name = str(key.value).replace("-", "_")
            here = replace(self, key=f"{self.key}.{name}".lstrip("."))
            if name not in kinds:
                close = suggest(here.key, self.names)
                hint = f" Did you mean {close!r}?" if close else ""
                self.refuse(key, f"unknown setting {name!r}.{hint}")
            if name in values:
                here.refuse(key, "is set twice")
            values[name] = here.value(item, kinds[name])
        return values

    def value(self, node: yaml.Node, kind: Any) -> Any:
        origin, members = typing.get_origin(kind), typing.get_args(kind)
        if dataclasses.is_dataclass(kind):
            return self.fields(node, typing.cast("type[Any]", kind))
        if origin in (Union, types.UnionType):
            return self.optional(node, kind)
        if origin is tuple:
            return self.sequence(node, members)
        if not isinstance(node, yaml.ScalarNode) or _is_null(node):
            self.refuse(node, f"needs {_describe(kind)}")
        try:
            return _scalar(node.value, kind)
        except (ValueError, KeyError):
            self.refuse(node, f"{node.value!r} is not {_describe(kind)}")

    def optional(self, node: yaml.Node, kind: Any) -> Any:
        if _is_null(node) and types.NoneType in typing.get_args(kind):
            return None
        return self.value(node, _without_none(kind))

    def sequence(self, node: yaml.Node, members: tuple[Any, ...]) -> tuple[Any, ...]:
        if not isinstance(node, yaml.SequenceNode):
            self.refuse(node, "needs a list, such as [a, b]")
        count = len(node.value)
        kinds = (members[0],) * count if members[-1] is ... else members
        if len(kinds) != count:
            self.refuse(node, f"needs {len(kinds)} values, not {count}")
        return tuple(self.value(item, kind) for item, kind in zip(node.value, kinds, strict=True))


def _is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.style is None and node.value in _NULLS


def _without_none(kind: Any) -> Any:
    """Return `X` of `X | None`; other unions would make the meaning of a text depend on guesses."""
    members = [member for member in typing.get_args(kind) if member is not types.NoneType]
    if len(members) != 1:
        raise TypeError(f"{kind} cannot be a setting; use one type, or one type and None")
    return members[0]


def _scalar(text: str, kind: Any) -> Any:
    if typing.get_origin(kind) is Literal:
        return {str(choice): choice for choice in typing.get_args(kind)}[text]
    if issubclass(kind, enum.Enum):
        return {str(member.value): member for member in kind}[text]
    if kind is bool:
        return _BOOLEANS[text.lower()]
    return float(text.replace(".inf", "inf").replace(".nan", "nan")) if kind is float else kind(text)


def _describe(kind: Any) -> str:
    if typing.get_origin(kind) is Literal:
        return "one of " + ", ".join(map(repr, typing.get_args(kind)))
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return "one of " + ", ".join(repr(member.value) for member in kind)
    return _KINDS.get(kind, str(kind))
