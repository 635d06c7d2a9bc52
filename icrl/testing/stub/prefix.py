"""Which leading tokens of a prompt were seen before: a radix tree over ids."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

__all__ = ["PrefixMemory"]

_WIDTH = array("i").itemsize


@dataclass(slots=True)
class _Node:
    edge: bytes = b""
    """The ids that lead here."""
    children: dict[bytes, _Node] = field(default_factory=dict)
    """By their first id."""


class PrefixMemory:
    """Remembers sequences of ids and tells how long a prefix of another one it knows.

    Example:
        >>> memory = PrefixMemory()
        >>> memory.add([1, 2, 3, 4])
        >>> memory.match([1, 2, 3, 9]), memory.match([7])
        (3, 0)
    """

    def __init__(self) -> None:
        self._root = _Node()

    def match(self, ids: Sequence[int]) -> int:
        """Return how many leading ids are known."""
        return self._walk(array("i", ids).tobytes())[2] // _WIDTH

    def add(self, ids: Sequence[int]) -> None:
        """Remember a sequence."""
        data = array("i", ids).tobytes()
        node, inside, known = self._walk(data)
        if known == len(data):
            return
        if inside < len(node.edge):
            _split(node, inside)
        node.children[data[known : known + _WIDTH]] = _Node(data[known:])

    def clear(self) -> None:
        """Forget everything."""
        self._root = _Node()

    def _walk(self, data: bytes) -> tuple[_Node, int, int]:
        """Return the node where the known prefix ends, how far along its edge, and the prefix's length, in bytes."""
        node, inside, known = self._root, 0, 0
        while (child := node.children.get(data[known : known + _WIDTH])) is not None:
            inside = _common(child.edge, data[known : known + len(child.edge)])
            node, known = child, known + inside
            if inside < len(child.edge):
                return node, inside, known
        return node, len(node.edge), known


def _split(node: _Node, at: int) -> None:
    """Cut a node's edge in two."""
    rest = _Node(node.edge[at:], node.children)
    node.edge, node.children = node.edge[:at], {rest.edge[:_WIDTH]: rest}


def _common(one: bytes, two: bytes) -> int:
    """Return the length of the common prefix, in whole ids."""
    low, high = 0, min(len(one), len(two)) // _WIDTH
    if one[: high * _WIDTH] == two[: high * _WIDTH]:
        return high * _WIDTH
    while low < high:
        middle = (low + high + 1) // 2
        if one[low * _WIDTH : middle * _WIDTH] == two[low * _WIDTH : middle * _WIDTH]:
            low = middle
        else:
            high = middle - 1
    return low * _WIDTH
