"""`str.format` that reads attributes through the guard, and a `string.Formatter` that does the same."""

from __future__ import annotations

import re
from _string import formatter_field_name_split, formatter_parser  # type: ignore[import-not-found]
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from icrl.runtime.sandbox.policy.attributes import read

__all__ = ["Formatter", "guarded_format"]

_CONVERSIONS: dict[str, Callable[[Any], str]] = {"r": repr, "s": str, "a": ascii}
_LOOKS_INSIDE = re.compile(r"\{[^{}:!]*[.\[]")  # a replacement field with an attribute or an index


class Formatter:
    """What `string.Formatter` offers, with guarded attributes.

    It shares no base with the original: whatever a subclass reaches by `super` is guarded as well.

    Example:
        >>> Formatter().format("{0.real:>5} {name!r}", 3, name="x")
        "    3 'x'"
    """

    def format(self, template: str, /, *args: Any, **kwargs: Any) -> str:
        """Fill in a template."""
        return self.vformat(template, args, kwargs)

    def vformat(self, template: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
        """Fill in a template from a sequence and a mapping."""
        return self._fill(template, args, kwargs, _Numbering(), 2)

    def _fill(
        self, template: str, args: Sequence[Any], kwargs: Mapping[str, Any], numbers: _Numbering, depth: int
    ) -> str:
        if depth < 0:
            raise ValueError("Max string recursion exceeded")
        parts: list[str] = []
        for literal, field, spec, conversion in self.parse(template):
            parts.append(literal)
            if field is not None:
                found, _ = self.get_field(numbers.named(field), args, kwargs)
                value = self.convert_field(found, conversion)
                parts.append(self.format_field(value, self._fill(spec or "", args, kwargs, numbers, depth - 1)))
        return "".join(parts)

    def parse(self, template: str) -> Iterator[tuple[str, str | None, str | None, str | None]]:
        """Split a template into literal text, field, specification and conversion."""
        parts: Iterator[tuple[str, str | None, str | None, str | None]] = formatter_parser(template)
        return parts

    def get_field(self, field: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, int | str]:
        """Return the object that a field names, and the key of the argument that was used."""
        first, rest = formatter_field_name_split(field)
        value = self.get_value(first, args, kwargs)
        for is_attribute, key in rest:
            value = read(value, key) if is_attribute else value[key]
        return value, first

    def get_value(self, key: int | str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Return an argument."""
        return args[key] if isinstance(key, int) else kwargs[key]

    def convert_field(self, value: Any, conversion: str | None) -> Any:
        """Apply `!r`, `!s` or `!a`."""
        if conversion is None:
            return value
        try:
            return _CONVERSIONS[conversion](value)
        except KeyError:
            raise ValueError(f"Unknown conversion specifier {conversion!r}") from None

    def format_field(self, value: Any, spec: str) -> str:
        """Format one value."""
        return format(value, spec)


def guarded_format(template: str, /, *args: Any, **kwargs: Any) -> str:
    """Do what `str.format` does, without unguarded attributes.

    Example:
        >>> guarded_format("{:.2f}", 1.5), guarded_format("{p.real}", p=2)
        ('1.50', '2')
    """
    if _LOOKS_INSIDE.search(template) is None:
        return str.format(template, *args, **kwargs)
    return Formatter().vformat(template, args, kwargs)


class _Numbering:
    """Counts fields without a name; a template may not mix them with numbered ones."""

    def __init__(self) -> None:
        self._next = 0
        self._mode: str | None = None

    def named(self, field: str) -> str:
        """Return a field with a number where it has none."""
        automatic = field[:1] in ("", ".", "[")
        if automatic or isinstance(formatter_field_name_split(field)[0], int):
            mode = "automatic field numbering" if automatic else "manual field specification"
            if self._mode not in (None, mode):
                raise ValueError(f"cannot switch from {self._mode} to {mode}")
            self._mode = mode
        if automatic:
            self._next += 1
            return f"{self._next - 1}{field}"
        return field
