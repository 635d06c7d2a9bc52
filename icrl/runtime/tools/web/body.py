"""Reading what a server sends, up to a limit that counts decompressed bytes."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import aiohttp

__all__ = ["ACCEPTED_ENCODINGS", "Body", "UnknownEncoding", "read_body"]

ACCEPTED_ENCODINGS = "gzip, deflate"

_ANY_HEADER = zlib.MAX_WBITS | 32
_NO_HEADER = -zlib.MAX_WBITS
_ZLIB_METHOD = 8


class UnknownEncoding(ValueError):
    """The body is compressed in a way that was not asked for, or is damaged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Body:
    """What was read of an answer.

    Example:
        >>> Body(data=b"{}", complete=True).complete
        True
    """

    data: bytes
    """The bytes, decompressed."""
    complete: bool
    """Whether that is all of them."""


async def read_body(response: aiohttp.ClientResponse, *, max_bytes: int) -> Body:
    """Read at most `max_bytes` decompressed bytes, and not more than that compressed.

    The session must have been made with `auto_decompress=False`: how much a few bytes may become is decided here.

    Raises:
        UnknownEncoding: The body's encoding is none of `ACCEPTED_ENCODINGS`, or the body is damaged.
    """
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    unpack = _Identity() if encoding in ("identity", "") else _Inflate(encoding)
    data, received = bytearray(), 0
    async for chunk in response.content.iter_any():
        received += len(chunk)
        data += unpack(chunk, max_bytes + 1 - len(data))
        if len(data) > max_bytes or received > max_bytes:
            # What is still on its way belongs to nobody, so the connection cannot be used again.
            response.close()
            return Body(data=bytes(data[:max_bytes]), complete=False)
    return Body(data=bytes(data), complete=unpack.ended)


class _Identity:
    ended = True

    def __call__(self, chunk: bytes, room: int) -> bytes:
        return chunk[:room]


class _Inflate:
    def __init__(self, encoding: str) -> None:
        if encoding not in ("gzip", "x-gzip", "deflate"):
            raise UnknownEncoding("it is compressed in a way that was not asked for")
        self._is_deflate = encoding == "deflate"
        self._stream = zlib.decompressobj(_ANY_HEADER)
        self._started = False

    @property
    def ended(self) -> bool:
        return self._stream.eof and not self._stream.unused_data

    def __call__(self, chunk: bytes, room: int) -> bytes:
        if self._is_deflate and not self._started and chunk[0] & 0x0F != _ZLIB_METHOD:
            # `deflate` means zlib, but some servers leave its header out.
            self._stream = zlib.decompressobj(_NO_HEADER)
        self._started = True
        if self._stream.eof:
            return b""
        try:
            return self._stream.decompress(chunk, room)
        except zlib.error:
            raise UnknownEncoding("its compression is damaged") from None
