from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from icrl.errors import ConfigError, ToolArgumentError
from icrl.runtime.tools.signature import Signature


class Unit(enum.Enum):
    METRE = "m"
    FOOT = "ft"


@dataclass
class Point:
    x: float
    y: float = 0.0


def every_type(
    text: str,
    count: int,
    ratio: float,
    flag: bool,
    tags: list[str],
    table: dict[str, int],
    mode: Literal["fast", "exact"],
    unit: Unit,
    point: Point,
    limit: int | None = None,
    size: Annotated[int, msgspec.Meta(ge=1)] = 3,
) -> str:
    """Measure something.

    Over two lines.

    Args:
        text: What to measure,
            continued here.
        count (int): How often.

    Returns:
        Nothing of note: really.

    Raises:
        ToolError: Never.
    """
    return repr((text, count, ratio, flag, tags, table, mode, unit, point, limit, size))


GOOD = {
    "text": "a",
    "count": 2,
    "ratio": 0.5,
    "flag": True,
    "tags": ["x"],
    "table": {"k": 1},
    "mode": "fast",
    "unit": "m",
    "point": {"x": 1},
}


def test_schema_describes_every_supported_type():
    signature = Signature.of(every_type)
    properties = signature.schema["properties"]
    assert signature.description == "Measure something.\n\nOver two lines."
    assert properties["text"] == {"type": "string", "description": "What to measure, continued here."}
    assert properties["count"] == {"type": "integer", "description": "How often."}
    assert [properties[n]["type"] for n in ("ratio", "flag")] == ["number", "boolean"]
    assert properties["tags"] == {"type": "array", "items": {"type": "string"}}
    assert properties["table"] == {"type": "object", "additionalProperties": {"type": "integer"}}
    assert properties["mode"] == {"enum": ["exact", "fast"]}
    assert properties["unit"] == {"$ref": "#/$defs/Unit"}
    assert signature.schema["$defs"]["Point"]["required"] == ["x"]
    assert properties["limit"] == {"anyOf": [{"type": "integer"}, {"type": "null"}], "default": None}
    assert properties["size"]["default"] == 3
    assert signature.schema["required"] == list(GOOD)
    assert signature.schema["additionalProperties"] is False
    msgspec.json.encode(signature.schema)


def test_bind_converts_to_the_annotated_types_and_leaves_defaults_to_python():
    bound = Signature.of(every_type).bind(GOOD)
    assert bound["unit"] is Unit.METRE
    assert bound["point"] == Point(x=1.0)
    assert "limit" not in bound


@pytest.mark.parametrize(
    ("name", "written", "value"),
    [("count", "3", 3), ("ratio", "0.5", 0.5), ("flag", "true", True), ("limit", "7", 7), ("text", "3", "3")],
)
def test_values_written_as_text_are_read(name, written, value):
    assert Signature.of(every_type).bind(GOOD | {name: written})[name] == value


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": "many"}, r"argument 'count': Expected int, got str \(it must be integer\)"),
        ({"text": 3}, r"argument 'text': Expected str, got int \(it must be string\)"),
        ({"mode": "slow"}, r"argument 'mode': Invalid enum value 'slow' \(it must be one of 'exact', 'fast'\)"),
        ({"unit": "km"}, r"argument 'unit'.*one of 'ft', 'm'"),
        ({"tags": ["x", 1]}, r"argument 'tags' at \[1\]: .*a list, each string"),
        ({"point": {"x": "far"}}, r"argument 'point' at x: Expected float, got str"),
        ({"limit": "none at all"}, r"integer or null"),
        ({"size": 0}, r"argument 'size': Expected int >= 1"),
        ({"txt": "b"}, r"unknown argument 'txt'\. Did you mean 'text'\? The arguments are: text \(string\), "),
    ],
)
def test_wrong_arguments_are_refused_with_what_to_do(change, message):
    with pytest.raises(ToolArgumentError, match=message):
        Signature.of(every_type).bind(GOOD | change)


def test_missing_argument_is_named():
    with pytest.raises(ToolArgumentError, match=r"missing argument 'text'\. The arguments are: text \(string\)"):
        Signature.of(every_type).bind({})


def test_function_without_parameters_takes_none():
    def now() -> str:
        """Tell the time."""
        return ""

    signature = Signature.of(now)
    assert signature.bind({}) == {}
    with pytest.raises(ToolArgumentError, match="There are no arguments"):
        signature.bind({"zone": "UTC"})


def complex_number(z: complex) -> str:
    """Nothing."""
    return str(z)


def callback(then: Callable[[], None]) -> str:
    """Nothing."""
    return str(then)


def bare(text) -> str:
    """Nothing."""
    return text


def variadic(*texts: str) -> str:
    """Nothing."""
    return " ".join(texts)


def positional(text: str, /) -> str:
    """Nothing."""
    return text


def odd_default(text: str = object()) -> str:  # type: ignore[assignment]
    """Nothing."""
    return text


def stale_docstring(text: str) -> str:
    """Nothing.

    Args:
        txt: An old name.
    """
    return text


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (complex_number, "complex_number: parameter 'z'"),
        (callback, "callback: parameter 'then'"),
        (bare, "parameter 'text' has no annotation"),
        (variadic, r"parameter \*texts"),
        (positional, "parameter text"),
        (odd_default, "parameter 'text' has a type or default"),
        (stale_docstring, "describes 'txt', which is no parameter. Did you mean 'text'"),
    ],
)
def test_what_json_cannot_carry_is_refused_by_name(function, message):
    with pytest.raises(ConfigError, match=message):
        Signature.of(function)


def test_annotation_that_cannot_be_resolved_is_refused():
    class Local: ...

    def uses_local(value: Local) -> str:
        """Nothing."""
        return str(value)

    with pytest.raises(ConfigError, match="define the type at module level"):
        Signature.of(uses_local)


json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from([*GOOD, "limit", "size", "other"]), json_values, max_size=4))
def test_any_arguments_are_bound_or_refused_in_words(change):
    try:
        bound = Signature.of(every_type).bind(GOOD | change)
    except ToolArgumentError as error:
        assert "argument" in str(error)  # noqa: PT017
    else:
        assert set(bound) == set(GOOD | change)
