"""What a Python function tells about itself: a JSON schema to show the model, and a check of what the model sends."""

from __future__ import annotations

import inspect
import itertools
import re
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from icrl.errors import ConfigError, ToolArgumentError, nearest

__all__ = ["Signature"]

_SECTION = re.compile(r"^(Args|Arguments|Returns|Yields|Raises|Examples?|Notes?):\s*$")
_ARGUMENT = re.compile(r"^(\w+)\s*(?:\([^)]*\))?:\s*(.*)$")
_AT = re.compile(r" - at `\$\.?([^`]*)`$")
_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """The parameters of a function, as a schema and as a check.

    Example:
        >>> def scale(value: int, factor: float = 2.0) -> str:
        ...     '''Multiply a number.
        ...
        ...     Args:
        ...         value: What to multiply.
        ...     '''
        >>> Signature.of(scale).bind({"value": "3"})
        {'value': 3}
    """

    description: str
    """The docstring up to its first section."""
    schema: Mapping[str, Any]
    """JSON schema of the arguments: an object."""
    types: Mapping[str, Any]
    """Parameter name to annotation."""

    @classmethod
    def of(cls, function: Callable[..., Any]) -> Signature:
        """Read a function's annotations and its Google style docstring.

        Raises:
            ConfigError: A parameter is unannotated, variadic, positional-only, or of a type that JSON cannot carry;
                or the docstring describes a parameter that does not exist.
        """
        description, texts = _read_docstring(inspect.getdoc(function) or "")
        types = _annotations(function)
        for name in texts:
            if name not in types:
                raise ConfigError(
                    f"{_name(function)}: the docstring describes {name!r}, which is no parameter.{nearest(name, types)}"
                )
        return cls(description=description, schema=_schema(function, types, texts), types=types)

    def bind(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Convert a call's arguments to the annotated types.

        Numbers and booleans may come as strings, since tagged dialects know only text.

        Raises:
            ToolArgumentError: An argument is missing, unknown or of the wrong type; the model can act on the message.
        """
        for name in arguments:
            if name not in self.types:
                raise ToolArgumentError(f"unknown argument {name!r}.{nearest(name, self.types)} {self._usage()}")
        for name in self.schema["required"]:
            if name not in arguments:
                raise ToolArgumentError(f"missing argument {name!r}. {self._usage()}")
        return {name: self._convert(name, value) for name, value in arguments.items()}

    def _convert(self, name: str, value: Any) -> Any:
        kind = self.types[name]
        try:
            return msgspec.convert(value, kind)
        except (msgspec.ValidationError, ValueError) as error:
            strict = str(error)
        try:
            return msgspec.convert(value, kind, strict=False)
        except (msgspec.ValidationError, ValueError):
            place = _AT.search(strict)
            where = "" if place is None else f" at {place[1]}"
            reason = _AT.sub("", strict).replace("`", "")
            expected = _describe(self.schema["properties"][name], self.schema)
            raise ToolArgumentError(f"argument {name!r}{where}: {reason} (it must be {expected})") from None

    def _usage(self) -> str:
        if not self.types:
            return "There are no arguments."
        listed = (f"{name} ({_describe(schema, self.schema)})" for name, schema in self.schema["properties"].items())
        return f"The arguments are: {', '.join(listed)}."


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__qualname__", type(function).__name__)


def _annotations(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except NameError as error:
        raise ConfigError(
            f"{_name(function)}: an annotation cannot be resolved ({error}); define the type at module level"
        ) from error
    types = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind not in _NAMED:
            raise ConfigError(f"{_name(function)}: parameter {parameter} cannot be called by name, as models do")
        if name not in hints:
            raise ConfigError(
                f"{_name(function)}: parameter {name!r} has no annotation; write for example `{name}: str`"
            )
        types[name] = hints[name]
    return types


def _schema(function: Callable[..., Any], types: Mapping[str, Any], texts: Mapping[str, str]) -> dict[str, Any]:
    properties: dict[str, Any] = {}
    shared: dict[str, Any] = {}
    required = []
    for name, parameter in inspect.signature(function).parameters.items():
        properties[name], components = _property(function, parameter, types[name])
        shared |= components
        if name in texts:
            properties[name]["description"] = texts[name]
        if parameter.default is parameter.empty:
            required.append(name)
    schema = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    return schema | ({"$defs": shared} if shared else {})


def _property(
    function: Callable[..., Any], parameter: inspect.Parameter, kind: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    has_default = parameter.default is not parameter.empty
    try:
        (schema,), components = msgspec.json.schema_components([kind], ref_template="#/$defs/{name}")
        msgspec.json.Decoder(kind)
        default = {"default": msgspec.to_builtins(parameter.default)} if has_default else {}
    except TypeError as error:
        raise ConfigError(
            f"{_name(function)}: parameter {parameter.name!r} has a type or default that JSON cannot carry "
            f"({parameter}); use str, int, float, bool, list, dict, Literal, an Enum, a dataclass, or an optional one"
        ) from error
    return {**schema, **default}, dict(components)


def _describe(schema: Mapping[str, Any], root: Mapping[str, Any]) -> str:
    """Name a schema's type in words that a model can act on."""
    if "$ref" in schema:
        return _describe(root["$defs"][schema["$ref"].rsplit("/", 1)[1]], root)
    if "enum" in schema:
        return "one of " + ", ".join(repr(choice) for choice in schema["enum"])
    if "anyOf" in schema:
        return " or ".join(_describe(part, root) for part in schema["anyOf"])
    if schema.get("type") == "array" and "items" in schema:
        return f"a list, each {_describe(schema['items'], root)}"
    return str(schema.get("type", "any value"))


def _read_docstring(text: str) -> tuple[str, dict[str, str]]:
    """Split a Google style docstring into what stands before its sections, and the `Args` by name."""
    lines = text.splitlines()
    sections = [index for index, line in enumerate(lines) if _SECTION.match(line)]
    description = "\n".join(lines[: sections[0]] if sections else lines).strip()
    for start, end in itertools.pairwise([*sections, len(lines)]):
        if lines[start].startswith("Arg"):
            return description, _read_arguments(lines[start + 1 : end])
    return description, {}


def _read_arguments(lines: list[str]) -> dict[str, str]:
    texts: dict[str, str] = {}
    body = [line for line in lines if line.strip()]
    margin = min((len(line) - len(line.lstrip()) for line in body), default=0)
    last = ""
    for line in body:
        entry = _ARGUMENT.match(line[margin:])
        if entry:
            last = entry[1]
            texts[last] = entry[2].strip()
        elif last:
            texts[last] = f"{texts[last]} {line.strip()}".strip()
    return texts
