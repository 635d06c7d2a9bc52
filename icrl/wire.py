"""The JSON form of the types: one line a record, decoded strictly.

Encoding and decoding are inverse to each other. A record with a missing, unknown, mistyped or unlawful field is
refused with a message that names it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from icrl.errors import DataError, nearest

__all__ = ["decode", "encode"]

T = TypeVar("T")

_ENCODER = msgspec.json.Encoder()


def encode(value: Any) -> bytes:
    """Encode a value of `icrl.types`, `icrl.trajectory` or `icrl.events` as one line of JSON.

    Example:
        >>> from icrl.trajectory import VersionSpan
        >>> encode(VersionSpan(version=1, start=0, end=4))
        b'{"version":1,"start":0,"end":4}'
    """
    return _ENCODER.encode(value)


def decode(data: bytes | str, kind: type[T]) -> T:
    """Decode one JSON record.

    Args:
        data: The record.
        kind: The type to build, such as `Trajectory`.

    Raises:
        DataError: The record is damaged; the message names the field.

    Example:
        >>> from icrl.trajectory import VersionSpan
        >>> decode('{"version":1,"start":0,"end":4}', VersionSpan).end
        4
    """
    name = getattr(kind, "__name__", str(kind))
    try:
        raw = msgspec.json.decode(data)
        value = msgspec.convert(raw, kind)
    except (msgspec.MsgspecError, DataError) as error:
        raise DataError(f"{name}: {error}") from error
    try:
        _refuse_unknown(raw, msgspec.to_builtins(value), "$")
    except DataError as error:
        raise DataError(f"{name}: {error}") from error
    return value


def _refuse_unknown(raw: Any, known: Any, path: str) -> None:
    """Compare a record with what its decoded value encodes to; dataclass decoding alone ignores unknown keys."""
    if isinstance(raw, Mapping) and isinstance(known, Mapping):
        for key, item in raw.items():
            if key not in known:
                raise DataError(f"unknown field `{key}` - at `{path}`.{nearest(str(key), map(str, known))}")
            _refuse_unknown(item, known[key], f"{path}.{key}")
        missing = [key for key in known if key not in raw]
        if missing:
            raise DataError(f"missing field `{missing[0]}` - at `{path}`")
    elif isinstance(raw, list) and isinstance(known, list):
        for index, (item, other) in enumerate(zip(raw, known, strict=True)):
            _refuse_unknown(item, other, f"{path}[{index}]")
