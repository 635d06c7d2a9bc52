from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass
from typing import get_type_hints

import pytest
from watched import until

from icrl.errors import ConfigError, ToolArgumentError, ToolError
from icrl.runtime.tools.tool import PolicySettings, Tool, ToolPolicy, ToolSpec, close, tool


@dataclass
class Reading:
    value: float
    unit: str


@tool
async def greet(name: str, excited: bool = False) -> str:
    """Greet somebody.

    Args:
        name: Whom to greet.
        excited: Whether to shout.
    """
    return f"Hello {name}{'!' if excited else '.'}"


@tool(name="thermometer", description="Read it.", timeout_s=1.5, max_concurrency=3, max_queue=7)
def read_thermometer(place: str) -> Reading:
    return Reading(value=21.5, unit=place)


def test_async_function_becomes_a_tool():
    assert isinstance(greet, Tool)
    assert greet.spec.name == "greet"
    assert greet.spec.description == "Greet somebody."
    assert greet.spec.parameters["properties"]["name"] == {"type": "string", "description": "Whom to greet."}
    assert greet.policy == ToolPolicy()
    assert repr(greet) == "<tool greet>"


def test_decorator_arguments_set_spec_and_policy():
    assert (read_thermometer.spec.name, read_thermometer.spec.description) == ("thermometer", "Read it.")
    assert read_thermometer.policy == ToolPolicy(timeout_s=1.5, max_concurrency=3, max_queue=7)


def test_every_setting_of_the_policy_can_be_given_to_the_decorator():
    @tool(calls_per_s=2.5, retries=3, repeatable=True, cache_ttl_s=60.0, fingerprint="v2")
    async def look(text: str) -> str:
        """Look."""
        return text

    assert look.policy == ToolPolicy(calls_per_s=2.5, retries=3, repeatable=True, cache_ttl_s=60.0)
    assert look.fingerprint == "v2"
    assert get_type_hints(PolicySettings) == get_type_hints(ToolPolicy)


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ({"calls_per_s": 0.0}, "calls_per_s: must be > 0"),
        ({"calls_per_s": float("nan")}, "calls_per_s: must be > 0"),
        ({"retries": -1}, "retries: must be >= 0"),
        ({"cache_ttl_s": 0, "repeatable": True}, "cache_ttl_s: must be > 0 seconds"),
        ({"cache_ttl_s": 5.0}, "only answers of a repeatable tool are cached"),
    ],
)
def test_settings_that_mean_nothing_are_refused(setting, problem):
    with pytest.raises(ConfigError, match=problem):
        ToolPolicy(**setting)


async def test_strings_are_returned_as_they_are_and_other_values_as_json():
    assert await greet({"name": "Ada", "excited": "true"}) == "Hello Ada!"
    assert await read_thermometer({"place": "roof"}) == '{"value":21.5,"unit":"roof"}'
    await close(read_thermometer)


@pytest.mark.parametrize(
    ("value", "text"), [(None, "null"), (3, "3"), (["a", 1.5], '["a",1.5]'), ({"é": 1}, '{"é":1}')]
)
async def test_json_results(value, text):
    @tool(description="Return something.")
    async def give() -> object:
        return value

    assert await give({}) == text


@pytest.mark.parametrize("value", [b"raw", bytearray(b"raw")])
async def test_bytes_are_refused(value):
    @tool(description="Return bytes.")
    async def give() -> object:
        return value

    with pytest.raises(ToolError, match="which is not text"):
        await give({})


async def test_arguments_are_checked_before_the_function_runs():
    with pytest.raises(ToolArgumentError, match=r"unknown argument 'nmae'\. Did you mean 'name'"):
        await greet({"nmae": "Ada"})


async def test_plain_function_runs_in_a_thread_and_closing_ends_it():
    @tool(description="Tell where it runs.")
    def where() -> str:
        return threading.current_thread().name

    assert await where({}) == "tool-where"
    await where.aclose()
    assert "tool-where" not in {thread.name for thread in threading.enumerate()}
    assert await where({}) == "tool-where"
    await where.aclose()
    await where.aclose()


async def test_hung_plain_function_is_counted_until_it_ends():
    started, release = threading.Event(), threading.Event()

    @tool(description="Hang.")
    def hang() -> str:
        started.set()
        release.wait(5)
        return "late"

    assert hang.busy == 0
    hanging = asyncio.ensure_future(hang({}))
    await until(started.is_set)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(hanging, 0.02)
    assert hang.busy == 1
    release.set()
    while hang.busy:  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    await hang.aclose()


def test_tool_survives_two_event_loops():
    async def once() -> str:
        answer = await read_thermometer({"place": "roof"})
        await read_thermometer.aclose()
        return answer

    assert asyncio.run(once()) == asyncio.run(once())


@pytest.mark.parametrize("name", ["", "1st", "with space", "a" * 65, "ünï", "-x"])
def test_names_that_a_dialect_could_not_write_are_refused(name):
    with pytest.raises(ConfigError, match=r"ToolSpec\.name"):
        ToolSpec(name=name, description="d", parameters={"type": "object"})


def test_spec_needs_a_description_and_an_object():
    with pytest.raises(ConfigError, match="description"):
        ToolSpec(name="t", description=" ", parameters={"type": "object"})
    with pytest.raises(ConfigError, match="parameters"):
        ToolSpec(name="t", description="d", parameters={"type": "string"})


def test_function_without_docstring_is_refused():
    with pytest.raises(ConfigError, match="tool 'silent' needs one"):

        @tool
        async def silent() -> str:
            return ""


@pytest.mark.parametrize(
    "wrong", [{"timeout_s": 0.0}, {"timeout_s": float("nan")}, {"max_concurrency": 0}, {"max_queue": -1}]
)
def test_policy_bounds(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        ToolPolicy(**wrong)


async def test_close_passes_over_what_has_nothing_to_close():
    await close(object())
