"""Arguments of calls, as JSON or as bare text."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from icrl.errors import DataError
from icrl.runtime.tools.tool import ToolSpec

__all__ = ["bare_text", "read_object", "text_parameter"]

_MARGIN = re.compile(r"\A(?:[ \t]*\r?\n)+|\A[ \t]+")
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


def bare_text(body: str) -> str:
    r"""Return what stands between two tags without the margin that is only layout.

    Example:
        >>> bare_text("\n    indented\n")
        '    indented'
    """
    return _MARGIN.sub("", body).rstrip()


def text_parameter(spec: ToolSpec) -> str | None:
    """Return the parameter that a text without any markup is the value of, where a tool requires just one string.

    Example:
        >>> schema = {"type": "object", "required": ["code"], "properties": {"code": {"type": "string"}}}
        >>> text_parameter(ToolSpec(name="python", description="Run code.", parameters=schema))
        'code'
    """
    if len(required := spec.parameters.get("required", ())) != 1:
        return None
    name: str = required[0]
    return name if spec.parameters.get("properties", {}).get(name, {}).get("type") == "string" else None
