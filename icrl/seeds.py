"""Independent random streams from one seed, by name."""

from __future__ import annotations

import hashlib

__all__ = ["seed_for"]


def seed_for(seed: int, *path: int | str) -> int:
    """Derive the seed of a named stream: run → step → group → member → turn.

    Args:
        seed: The parent seed.
        path: Names that lead to the stream.

    Returns:
        A 63-bit seed; different paths give unrelated streams on every machine.

    Example:
        >>> seed_for(0, "step", 3) == seed_for(0, "step", 3), seed_for(0, 1) == seed_for(0, 2)
        (True, False)
    """
    text = "/".join((str(seed), *map(str, path)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) >> 1
