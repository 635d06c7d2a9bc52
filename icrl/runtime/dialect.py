"""The dialects, by name.

XmlDialect      the paper's: think, one tag a tool, information, answer; any model that continues text
HermesDialect   the chat template's own tool format, as Qwen2.5 and Qwen3 have it
FenceDialect    prose with fenced programs and what they print; one tool, which takes one string
"""

from __future__ import annotations

from icrl.errors import ConfigError, nearest
from icrl.runtime.dialects.fence import FenceDialect
from icrl.runtime.dialects.hermes import HermesDialect
from icrl.runtime.dialects.protocol import Dialect, Parser, Piece, PieceKind, Reply
from icrl.runtime.dialects.xml import XmlDialect

__all__ = [
    "Dialect",
    "FenceDialect",
    "HermesDialect",
    "Parser",
    "Piece",
    "PieceKind",
    "Reply",
    "XmlDialect",
    "find_dialect",
]


def find_dialect(name: str) -> Dialect:
    """Return the dialect of that name.

    Args:
        name: `"xml"`, `"hermes"` or `"fence"`.

    Raises:
        ConfigError: There is no such dialect.

    Example:
        >>> find_dialect("xml").stop([])
        ('</answer>',)
    """
    dialects: tuple[Dialect, ...] = (XmlDialect(), HermesDialect(), FenceDialect())
    for dialect in dialects:
        if dialect.name == name:
            return dialect
    names = [dialect.name for dialect in dialects]
    raise ConfigError(f"dialect: {name!r} is not one of {', '.join(names)}.{nearest(name, names)}")
