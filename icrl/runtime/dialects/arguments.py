"""Arguments of calls as JSON."""

from __future__ import annotations

from typing import Any

import msgspec

from icrl.errors import DataError

__all__ = ["read_object"]

_DECODER = msgspec.json.Decoder()


def read_object(text: str, what: str) -> dict[str, Any]:
    """Read a JSON object that a model wrote.

    Args:
        text: The JSON.
        what: How to call it in the message, such as `"the body of <python>"`.

    Raises:
        DataError: It is no JSON object; the message tells the model what is wrong.

    Example:
        >>> read_object('{"query": "x"}', "the body of <search>")
        {'query': 'x'}
    """
    try:
        value = _DECODER.decode(text)
    except (msgspec.MsgspecError, RecursionError, UnicodeEncodeError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise DataError(f"{what} is not valid JSON: {reason}") from None
    if not isinstance(value, dict):
        raise DataError(f"{what} must be a JSON object, not {type(value).__name__}")
    return value
