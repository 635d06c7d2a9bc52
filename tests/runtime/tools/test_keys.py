from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icrl.runtime.tools.keys import canonical

numbers = st.integers(-3, 3) | st.sampled_from([0.0, -0.0, 1.0, 0.5, math.inf, -math.inf])
scalars = st.none() | st.booleans() | numbers | st.text(alphabet="a1\ud800é \x00", max_size=3)
json_values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3)
)
json_objects = st.dictionaries(st.text(max_size=2), json_values, max_size=3)


def shape(value):
    """The value with what Python's == cannot tell apart: types, and the sign of zero."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items()}
    if isinstance(value, list):
        return [shape(item) for item in value]
    return type(value).__name__, repr(value)


@given(json_objects, json_objects)
def test_equal_arguments_and_no_others_are_written_alike(one, other):
    assert (canonical(one) == canonical(other)) == (shape(one) == shape(other))


@given(json_objects, st.randoms())
def test_order_does_not_matter_and_nothing_is_lost(arguments, random):
    items = list(arguments.items())
    random.shuffle(items)
    written = canonical(dict(items))
    assert written == canonical(arguments)
    assert written.isascii()
    assert shape(json.loads(written)) == shape(arguments)


def test_nan_is_not_null():
    assert canonical({"a": math.nan}) != canonical({"a": None})


def nested(depth: int) -> dict:
    value: dict = {}
    for _ in range(depth):
        value = {"a": value}
    return value


@pytest.mark.parametrize("arguments", [{"a": b"bytes"}, {"a": {1, 2}}, {("a",): 1}, nested(100_000)])
def test_what_is_not_json_has_no_key(arguments):
    assert canonical(arguments) is None
