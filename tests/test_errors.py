from __future__ import annotations

import copy
import inspect
import pickle
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icrl import errors
from icrl.errors import ConfigError, DataError, EngineError, IcrlError, MissingExtraError, ToolError, nearest

CLASSES = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if kind.__module__ == errors.__name__]


def test_the_tree_in_the_documentation_is_the_tree():
    drawn: dict[str, str] = {}
    above: list[tuple[int, str]] = []
    for indent, name in re.findall(r"^( {4,})([A-Z]\w+)", errors.__doc__ or "", re.MULTILINE):
        while above and above[-1][0] >= len(indent):
            above.pop()
        drawn[name] = above[-1][1] if above else "Exception"
        above.append((len(indent), name))
    assert drawn == {kind.__name__: kind.__bases__[0].__name__ for kind in CLASSES}
    assert {*drawn, "nearest"} == set(errors.__all__)


def test_every_error_is_caught_by_the_root_and_by_its_python_kind():
    assert all(issubclass(kind, IcrlError) for kind in CLASSES)
    assert issubclass(ConfigError, ValueError)
    assert issubclass(DataError, ValueError)
    assert issubclass(MissingExtraError, ImportError)


def test_what_a_model_reads_is_apart_from_what_people_read():
    for_models = {kind.__name__ for kind in CLASSES if issubclass(kind, ToolError)}
    names = ("ToolArgumentError", "ToolBusy", "ToolError", "ToolNotFound", "ToolTimeout", "ToolUnavailable")
    assert for_models == set(names)


@pytest.mark.parametrize(
    "error",
    [
        EngineError("no answer", engine="here", status=503, retryable=True),
        MissingExtraError("bm25s", extra="search"),
        *(kind("why") for kind in CLASSES if kind not in (EngineError, MissingExtraError)),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("through", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))])
def test_errors_survive_pickling(error, through):
    other = through(error)
    assert type(other) is type(error)
    assert str(other) == str(error)
    assert vars(other) == vars(error)


def test_an_engine_error_names_engine_and_status():
    assert str(EngineError("no answer", engine="here", status=503)) == "here: no answer (status 503)"
    assert str(EngineError("no answer")) == "engine: no answer"


def test_a_missing_extra_prints_the_command():
    assert str(MissingExtraError("trl", extra="train")) == "trl is not installed; run: pip install 'icrl[train]'"


@given(st.text(max_size=6), st.lists(st.text(max_size=6), max_size=4))
def test_the_nearest_name_is_one_of_the_choices_or_nothing(name, choices):
    hint = nearest(name, choices)
    assert hint == "" or any(hint == f" Did you mean {choice!r}?" for choice in choices)
    assert name not in choices or hint == f" Did you mean {name!r}?"


def test_names_that_are_far_away_are_not_suggested():
    assert nearest("temprature", ["temperature", "top_p"]) == " Did you mean 'temperature'?"
    assert nearest("zebra", ["temperature", "top_p"]) == ""
