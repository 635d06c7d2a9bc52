"""Bytes to text, with the encodings that pages are written in."""

from __future__ import annotations

import codecs
import re

__all__ = ["decode_text"]

# A charset that a page names is looked up among these alone: Python's codecs also unpack, unquote and run slowly.
_KNOWN = frozenset(
    codecs.lookup(name).name
    for name in (
        "ascii utf-8 utf-16 utf-16-le utf-16-be big5 big5hkscs cp932 cp949 cp866 cp874 euc-jp euc-kr gb18030 gb2312 "
        "gbk hz iso-2022-jp koi8-r koi8-u mac-roman mac-cyrillic shift-jis tis-620 "
        + " ".join(f"iso-8859-{number}" for number in range(1, 17) if number != 12)
        + " "
        + " ".join(f"cp{number}" for number in range(1250, 1259))
    ).split()
)
# Pages that say Latin-1 mean Windows-1252 (WHATWG Encoding Standard).
_MEANT = {"iso8859-1": "cp1252", "ascii": "cp1252", "gb2312": "gb18030", "gbk": "gb18030"}
_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
_META = re.compile(rb"<meta[^>]{0,200}?charset\s{0,4}=\s{0,4}[\"']?\s{0,4}([\w:.-]{1,40})", re.IGNORECASE)
_META_WINDOW_BYTES = 2048


def decode_text(data: bytes, *, charset: str | None, is_html: bool) -> str:
    """Decode a body: by its byte order mark, the header's charset, the page's own, or as UTF-8; never fails.

    Args:
        data: The body.
        charset: What the header says.
        is_html: Whether a `<meta>` may name the charset.

    Example:
        >>> decode_text("Größe".encode("latin-1"), charset="ISO-8859-1", is_html=False)
        'Größe'
    """
    for mark, name in _MARKS:
        if data.startswith(mark):
            return data[len(mark) :].decode(name, "replace")
    named = _find(charset) or (_find(_meta(data)) if is_html else None)
    if named is not None:
        return data.decode(named, "replace")
    try:
        # A body that was cut may end within a character.
        return codecs.getincrementaldecoder("utf-8")().decode(data)
    except UnicodeDecodeError:
        return data.decode("cp1252", "replace")


def _find(charset: str | None) -> str | None:
    try:
        name = codecs.lookup((charset or "").strip()[:40]).name
    except (LookupError, ValueError):
        return None
    return _MEANT.get(name, name) if name in _KNOWN else None


def _meta(data: bytes) -> str | None:
    found = _META.search(data[:_META_WINDOW_BYTES])
    # A page whose tags could be read like this is not in UTF-16, whatever it says.
    name = found[1].decode() if found else None
    return "utf-8" if name and name.lower().startswith("utf-16") else name
