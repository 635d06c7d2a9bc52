"""Reading a request's JSON body into a typed structure, and saying exactly what is wrong with it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Collection
from typing import TypeVar

import msgspec
from aiohttp import hdrs, web

from icrl.errors import nearest
from icrl.serve.keys import CONFIG
from icrl.serve.problem import Problem, invalid

__all__ = ["decode_body", "read_body"]

Body = TypeVar("Body", bound=msgspec.Struct)

_PLACE = re.compile(r" - at `(?:key in )?\$\.?(.*?)`$")
_UNKNOWN = re.compile(r"^Object contains unknown field `(.*?)`")
_MISSING = re.compile(r"^Object missing required field `(.*?)`")


async def read_body(request: web.Request, kind: type[Body]) -> Body:
    """Read and decode a request's body.

    Raises:
        Problem: It is no JSON, too slow, or does not fit; the message names the field.
    """
    if request.content_type not in ("application/json", "application/octet-stream"):
        raise Problem(415, f"Content-Type: must be application/json, not {request.content_type}")
    if request.headers.get(hdrs.CONTENT_ENCODING, "identity").lower() != "identity":
        raise Problem(415, "Content-Encoding: must be identity; send the body as it is")
    try:
        async with asyncio.timeout(request.app[CONFIG].admission.header_timeout_s):
            raw = await request.read()
    except TimeoutError:
        raise Problem(408, "the body did not arrive in time", code="request_timeout") from None
    except web.RequestPayloadError:
        raise invalid(None, "the body is not sent as its headers say", code="invalid_body") from None
    return decode_body(raw, kind)


def decode_body(raw: bytes, kind: type[Body]) -> Body:
    """Decode a body.

    Raises:
        Problem: It is no JSON, or does not fit; the message names the field.

    Example:
        >>> class Ping(msgspec.Struct, forbid_unknown_fields=True):
        ...     word: str
        >>> decode_body(b'{"wrod": "x"}', Ping)
        Traceback (most recent call last):
        icrl.serve.problem.Problem: wrod: is not a field. Did you mean 'word'?
    """
    try:
        return msgspec.json.decode(raw, type=kind)
    except msgspec.ValidationError as error:
        raise _explain(str(error), kind) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise invalid(None, f"the body is not valid JSON: {error}", code="invalid_json") from None


def _explain(message: str, kind: type[msgspec.Struct]) -> Problem:
    place = found[1] if (found := _PLACE.search(message)) else ""
    text = _PLACE.sub("", message)
    if unknown := _UNKNOWN.match(text):
        hint = nearest(unknown[1], _fields(kind)) if not place else ""
        return invalid(_join(place, unknown[1]), f"is not a field.{hint}", code="unknown_parameter")
    if missing := _MISSING.match(text):
        return invalid(_join(place, missing[1]), "is missing", code="missing_required_parameter")
    return invalid(place or None, text[:1].lower() + text[1:], code="invalid_type")


def _fields(kind: type[msgspec.Struct]) -> Collection[str]:
    return kind.__struct_encode_fields__


def _join(place: str, name: str) -> str:
    return f"{place}.{name}" if place else name
