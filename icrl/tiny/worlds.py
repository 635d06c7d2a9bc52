"""The embedded worlds by name: what `--world` chooses between."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from icrl.errors import ConfigError, nearest
from icrl.tiny import CODE_DEMONSTRATIONS, CODE_HELD_OUT, CODE_TRAIN, DEMONSTRATIONS, HELD_OUT, TRAIN

__all__ = ["WORLDS", "EmbeddedWorld", "find_world"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedWorld:
    """Questions, worked examples, and the tools that answer them.

    A world of several files takes from each in turn, so that any first few of its tasks are of every kind.
    """

    name: str
    """What `--world` calls it."""
    train: tuple[Path, ...]
    """JSONL files of tasks to learn from."""
    held_out: tuple[Path, ...]
    """JSONL files of tasks to be judged on."""
    demonstrations: tuple[Path, ...]
    """YAML files of worked examples."""
    tools: tuple[str, ...]
    """Built-in tools, as settings name them."""


_SEARCH = EmbeddedWorld(
    name="search", train=(TRAIN,), held_out=(HELD_OUT,), demonstrations=(DEMONSTRATIONS,), tools=("search",)
)
_CODE = EmbeddedWorld(
    name="code",
    train=(CODE_TRAIN,),
    held_out=(CODE_HELD_OUT,),
    demonstrations=(CODE_DEMONSTRATIONS,),
    tools=("python",),
)
_MIXED = EmbeddedWorld(
    name="mixed",
    train=_SEARCH.train + _CODE.train,
    held_out=_SEARCH.held_out + _CODE.held_out,
    demonstrations=_SEARCH.demonstrations + _CODE.demonstrations,
    tools=_SEARCH.tools + _CODE.tools,
)

WORLDS = {world.name: world for world in (_SEARCH, _CODE, _MIXED)}
"""Every world by its name."""


def find_world(name: str) -> EmbeddedWorld:
    """Return a world.

    Args:
        name: `search`, `code` or `mixed`.

    Raises:
        ConfigError: There is no such world.

    Example:
        >>> find_world("mixed").tools
        ('search', 'python')
    """
    if name not in WORLDS:
        raise ConfigError(f"world: {name!r} is not one of {', '.join(WORLDS)}.{nearest(name, WORLDS)}")
    return WORLDS[name]
