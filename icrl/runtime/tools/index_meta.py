"""What an index says about itself, and whether its files are those that were written."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import msgspec

from icrl.errors import DataError
from icrl.runtime.tools.corpus import TOKENIZER
from icrl.wire import decode, encode

__all__ = ["META", "VERSION", "IndexMeta", "Meta", "digest", "format_of", "read_meta", "sizes", "write_meta"]

META = "index.json"
VERSION = 2
"""Version of the format of BM25 indexes."""


class Meta(Protocol):
    """What every kind of index says about itself."""

    @property
    def files(self) -> Mapping[str, int]:
        """Size in bytes of every file."""
        ...


M = TypeVar("M", bound=Meta)


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexMeta:
    """What a BM25 index says about itself."""

    format: Literal["icrl-bm25"] = "icrl-bm25"
    """Tells an index from any other directory."""
    version: int = VERSION
    """Version of the format."""
    tokenizer: str = TOKENIZER
    """How texts were split into words."""
    k1: float
    """How fast repeated words saturate."""
    b: float
    """How much a document's length counts."""
    documents: int
    """Number of documents."""
    words: int
    """Size of the vocabulary."""
    postings: int
    """Number of pairs of a word and a document that has it."""
    corpus_sha256: str
    """Hash of the corpus file that it was built from."""
    shards: tuple[int, ...]
    """Documents in each shard, which together are the corpus in its order."""
    files: Mapping[str, int]
    """Size in bytes of every file."""

    @property
    def fingerprint(self) -> str:
        """Names whatever decides what a search finds; how the index is sharded does not."""
        return digest(self.format, self.tokenizer, self.k1, self.b, self.corpus_sha256)


def digest(*parts: Any) -> str:
    """Name a combination of values by 32 hexadecimal digits.

    Example:
        >>> digest("a", 1) == digest("a", 1) != digest("a", 2)
        True
    """
    return hashlib.sha256(encode(parts)).hexdigest()[:32]


def sizes(directory: Path) -> dict[str, int]:
    """Measure all files below a directory."""
    paths = sorted(path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): path.stat().st_size for path in paths}


def write_meta(directory: Path, meta: Meta) -> None:
    """Write the description, which completes an index."""
    (directory / META).write_bytes(encode(meta) + b"\n")


def format_of(directory: Path) -> str:
    """Say which kind of index a directory holds.

    Raises:
        DataError: It holds none.
    """
    try:
        found = msgspec.json.decode((directory / META).read_bytes())["format"]
    except OSError as error:
        reason = f"{META} is missing" if isinstance(error, FileNotFoundError) else f"{META}: {error.strerror}"
        raise DataError(f"{directory}: is not a search index, {reason}; `icrl index` makes one") from error
    except (msgspec.MsgspecError, KeyError, TypeError) as error:
        raise DataError(f"{directory / META}: is not the description of a search index") from error
    return str(found)


def read_meta(directory: Path, kind: type[M]) -> M:
    """Read the description and compare it with what is there.

    Args:
        directory: The index.
        kind: What to read; the defaults of its fields say which format, version and tokenizer this code works with.

    Raises:
        DataError: The directory is no such index, is damaged, or was made by another version.
    """
    format_of(directory)
    path = directory / META
    try:
        data = path.read_bytes()
        _check_defaults(decode(data, dict), kind)
        meta = decode(data, kind)
    except DataError as error:
        raise DataError(f"{path}: {error}; build the index again with `icrl index`") from error
    for name, size in meta.files.items():
        _check_file(directory, name, size)
    return meta


def _check_defaults(stated: Mapping[str, Any], kind: type[Any]) -> None:
    for field in dataclasses.fields(kind):
        expected = field.default
        if expected is not dataclasses.MISSING and stated.get(field.name) != expected:
            raise DataError(f"{field.name} is {stated.get(field.name)!r}, and this version reads {expected!r}")


def _check_file(directory: Path, name: str, size: int) -> None:
    path = directory / name
    found = path.stat().st_size if path.is_file() else None
    if found != size:
        what = "is missing" if found is None else f"has {found} bytes instead of {size}"
        raise DataError(f"{directory}: the index is damaged, {name} {what}; build it again with `icrl index`")
