"""Which tensors a server's model is made of, and whether those of an update fit.

A server ignores tensors whose names it does not know, and dies of a tensor with a wrong shape, after it has loaded
those before it. So names and shapes are compared here before the first byte is sent.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from icrl.errors import WeightSyncError, nearest

__all__ = ["Manifest", "accept", "as_announced", "check_fit", "find_checkpoint", "read_manifest"]

TIED = "lm_head.weight"
"""May be left out, or sent again, where the output layer is the embedding."""

FLOATING = frozenset({"F64", "F32", "F16", "BF16"})
"""Types of a safetensors header that any floating type can be copied into."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The tensors of a checkpoint."""

    shapes: Mapping[str, tuple[int, ...]]
    """Shape by name."""
    optional: frozenset[str] = frozenset()
    """Names that may be absent, or be there in addition."""


def find_checkpoint(*places: str) -> Path | None:
    """Return the first of these model paths that this machine can read, as a directory or from the hub's cache."""
    for place in places:
        if os.path.isdir(place):
            return Path(place)
        cached = _cached(place)
        if cached is not None:
            return cached
    return None


def _cached(name: str) -> Path | None:
    """Find a downloaded model; nothing is ever downloaded here."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        return None
    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (OSError, ValueError):
        return None


def read_manifest(directory: Path) -> Manifest | None:
    """Read names and shapes from the headers of a directory's safetensors files; `None` where it has none.

    Raises:
        WeightSyncError: A file is no safetensors file.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for file in sorted(directory.glob("*.safetensors")):
        for name, entry in _header(file).items():
            if name != "__metadata__" and entry["dtype"] in FLOATING:
                shapes[name] = tuple(entry["shape"])
    if not shapes:
        return None
    return Manifest(shapes=shapes, optional=frozenset({TIED}) if _tied(directory) else frozenset())


def _header(file: Path) -> dict[str, Any]:
    """Read the JSON at the start of a file, whose length stands in the first eight bytes, lowest first."""
    try:
        with file.open("rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            header: dict[str, Any] = json.loads(opened.read(min(length, file.stat().st_size)))
    except (struct.error, ValueError) as error:
        raise WeightSyncError(f"{file} is not a safetensors file: {error}") from error
    return header


def _tied(directory: Path) -> bool:
    try:
        config = json.loads((directory / "config.json").read_text())
    except (OSError, ValueError):
        return False
    return bool(config.get("tie_word_embeddings", False))


def accept(given: Mapping[str, Any], manifest: Manifest | None) -> Manifest:
    """Refuse an update that does not fit, before any of it is loaded.

    Args:
        given: By name, anything with a `shape` and a `dtype`.
        manifest: What the model is made of, where that is known.

    Returns:
        What the next update has to fit once this one has succeeded.

    Raises:
        WeightSyncError: It is empty, of another type, or does not fit.

    Example:
        >>> accept({}, None)
        Traceback (most recent call last):
        icrl.errors.WeightSyncError: no weights were given
    """
    if not given:
        raise WeightSyncError("no weights were given")
    for name, tensor in given.items():
        if not tensor.dtype.is_floating_point:
            raise WeightSyncError(f"{name}: {tensor.dtype} is not a floating type")
    if manifest is None:
        return Manifest(shapes={name: tuple(tensor.shape) for name, tensor in given.items()})
    check_fit(given, manifest)
    return manifest


def check_fit(given: Mapping[str, Any], manifest: Manifest) -> None:
    """Compare what is to be sent with what the server's model is made of.

    Args:
        given: By name, anything with a `shape`.
        manifest: What the model is made of.

    Raises:
        WeightSyncError: A name is unknown or missing, or a shape differs.

    Example:
        >>> from types import SimpleNamespace
        >>> check_fit({"norm": SimpleNamespace(shape=(4,))}, Manifest(shapes={"norm": (8,)}))
        Traceback (most recent call last):
        icrl.errors.WeightSyncError: norm: shape (4,), the server's model has (8,)
    """
    shapes = manifest.shapes
    unknown = [name for name in given if name not in shapes and name not in manifest.optional]
    if unknown:
        raise WeightSyncError(f"the server's model has no weight {_some(unknown)}.{nearest(unknown[0], shapes)}")
    for name, tensor in given.items():
        if name in shapes and tuple(tensor.shape) != shapes[name]:
            raise WeightSyncError(f"{name}: shape {tuple(tensor.shape)}, the server's model has {shapes[name]}")
    missing = [name for name in shapes if name not in given and name not in manifest.optional]
    if missing:
        raise WeightSyncError(f"no weight was given for {_some(missing)}")


def as_announced(pieces: Iterable[tuple[str, Any]], layout: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Hand tensors on, detached, as long as they are those that were announced, each once.

    A server takes some of the tensors for all of them, and calls the mixture by the new name.

    Args:
        pieces: Names and tensors.
        layout: By name, anything with the `shape` of what is to come.

    Raises:
        WeightSyncError: Something else comes, or something is missing at the end.

    Example:
        >>> from types import SimpleNamespace
        >>> list(as_announced([], {"norm": SimpleNamespace(shape=(4,))}))
        Traceback (most recent call last):
        icrl.errors.WeightSyncError: no weight was given for 'norm'
    """
    missing = dict.fromkeys(layout)
    for name, tensor in pieces:
        if name not in missing:
            raise WeightSyncError(f"{name}: was {'given twice' if name in layout else 'not announced'}")
        if tuple(tensor.shape) != tuple(layout[name].shape):
            raise WeightSyncError(f"{name}: shape {tuple(tensor.shape)}, announced as {tuple(layout[name].shape)}")
        if tensor.is_meta:
            raise WeightSyncError(f"{name}: has no values, it is on the meta device")
        del missing[name]
        yield name, tensor.detach()
    if missing:
        raise WeightSyncError(f"no weight was given for {_some(list(missing))}")


def _some(names: Sequence[str]) -> str:
    return repr(names[0]) if len(names) == 1 else f"{names[0]!r} and {len(names) - 1} more"
