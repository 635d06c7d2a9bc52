from __future__ import annotations

import asyncio
import gc
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icrl.errors import ConfigError, SandboxError, ToolBusy, ToolError
from icrl.runtime.tools import desk as module
from icrl.runtime.tools.tool import ToolPolicy, tool
from icrl.runtime.tools.toolbox import Toolbox
from icrl.testing import EchoTool, FailingTool, HangingTool
from icrl.types import ToolCall, ToolResult

FAST = ToolPolicy(timeout_s=0.02)


def call(name: str = "echo", text: str = "hi", **fields: Any) -> ToolCall:
    return ToolCall(name=name, arguments={"text": text}, **fields)


async def ask(*tools: Any, deadline_s: float = 5.0, name: str | None = None, text: str = "hi") -> ToolResult:
    return await Toolbox(tools).run(call(name or tools[0].spec.name, text), deadline_s=deadline_s)


async def run_all(toolbox: Toolbox, calls: Sequence[ToolCall]) -> list[ToolResult]:
    return await asyncio.gather(*(toolbox.run(one, deadline_s=5.0) for one in calls))


async def test_answer_carries_the_call_and_the_time():
    result = await Toolbox([EchoTool(latency_s=0.01)]).run(call(id="3.1"), deadline_s=5.0)
    assert (result.call_id, result.name, result.text, result.error) == ("3.1", "echo", "hi", None)
    assert result.wall_s >= 0.01
    assert not result.truncated


def test_specs_are_in_order_and_names_must_differ():
    toolbox = Toolbox([EchoTool(), EchoTool(name="other")])
    assert [spec.name for spec in toolbox.specs] == ["echo", "other"]
    with pytest.raises(ConfigError, match="two tools are named 'echo'"):
        Toolbox([EchoTool(), EchoTool()])


def test_undecorated_function_is_refused_with_the_fix():
    with pytest.raises(ConfigError, match=r"decorate the function with @icrl\.tool"):
        Toolbox([lambda text: text])  # type: ignore[list-item]


def test_result_bound_is_checked():
    with pytest.raises(ConfigError, match="max_result_chars"):
        Toolbox([], max_result_chars=0)


async def test_unknown_tool_is_answered_with_the_nearest():
    result = await ask(EchoTool(), EchoTool(name="search"), name="serch")
    assert result.error == "ToolNotFound"
    assert result.text.endswith("there is no tool 'serch'. Did you mean 'search'? The tools are: echo, search.")
    assert (await Toolbox([]).run(call(), deadline_s=1.0)).text.endswith("The tools are: none.")


async def test_call_that_could_not_be_parsed_is_answered_and_not_run():
    echo = EchoTool()
    result = await Toolbox([echo]).run(call(error="the tag was never closed"), deadline_s=5.0)
    assert (result.error, result.text) == ("ToolArgumentError", "ToolArgumentError: the tag was never closed")
    assert echo.calls == []


@pytest.mark.parametrize(
    ("error", "name", "text"),
    [
        (ToolError("two\nlines about /srv/data"), "ToolError", "ToolError: two\nlines about /srv/data"),
        (ToolBusy("later"), "ToolBusy", "ToolBusy: later"),
        (ZeroDivisionError("division by zero"), "ZeroDivisionError", "ZeroDivisionError: division by zero"),
        (KeyError(), "KeyError", "KeyError: no message"),
        (ValueError("first\nsecond"), "ValueError", "ValueError: first"),
        (OSError(2, "No such file", "/srv/secret/data.txt"), "FileNotFoundError", None),
        (ValueError("see https://example.org/a/b and and/or"), "ValueError", None),
        (TimeoutError("inner"), "TimeoutError", "TimeoutError: inner"),
    ],
)
async def test_whatever_a_tool_raises_becomes_its_answer(error, name, text):
    result = await ask(FailingTool(error=error))
    assert result.error == name
    assert text is None or result.text == text
    assert "/srv/secret" not in result.text
    assert "https://" not in str(error) or result.text == f"ValueError: {error}"


async def test_long_messages_are_cut_and_the_traceback_is_logged_for_people(caplog):
    with caplog.at_level(logging.DEBUG, logger="icrl.tools"):
        result = await ask(FailingTool(error=RuntimeError("x" * 10_000)))
    assert len(result.text) < 600
    assert caplog.records[0].exc_info is not None


async def test_broken_sandbox_is_not_shown_to_the_model():
    with pytest.raises(SandboxError):
        await ask(FailingTool(error=SandboxError("leaked")))


async def test_hanging_tool_is_cancelled_at_its_deadline():
    hanging = HangingTool(policy=FAST)
    result = await ask(hanging)
    assert (result.error, result.text) == ("ToolTimeout", "ToolTimeout: hang gave no answer within 0.02 s")
    assert hanging.cancellations == 1
    assert len(asyncio.all_tasks()) == 1


async def test_the_nearer_deadline_counts():
    assert "within 0.01 s" in (await ask(HangingTool(), deadline_s=0.01)).text
    assert "no time was left" in (await ask(EchoTool(), deadline_s=-1.0)).text


async def test_tool_that_ignores_its_cancellation_is_left_behind(monkeypatch):
    monkeypatch.setattr(module, "CANCEL_GRACE_S", 0.02)
    hanging = HangingTool(policy=ToolPolicy(timeout_s=0.02, max_concurrency=1), swallows=1)
    toolbox = Toolbox([hanging])
    result = await toolbox.run(call("hang"), deadline_s=5.0)
    assert result.text.endswith("and went on after it was cancelled")
    assert result.wall_s < 2.0
    # Its slot stays taken, so the next call waits for it in vain.
    assert "had no free slot" in (await toolbox.run(call("hang"), deadline_s=5.0)).text
    assert len(hanging.calls) == 1
    await toolbox.aclose()
    assert len(asyncio.all_tasks()) == 1


async def test_sandbox_that_breaks_while_it_is_cancelled_is_reported():
    class Breaking(HangingTool):
        async def __call__(self, arguments: Mapping[str, Any]) -> str:
            try:
                await asyncio.Event().wait()
            finally:
                raise SandboxError("could not be killed")

    with pytest.raises(SandboxError):
        await ask(Breaking(policy=FAST))


async def test_cancelling_the_caller_cancels_the_tool():
    hanging = HangingTool()
    running = asyncio.create_task(ask(hanging))
    while not hanging.calls:  # noqa: ASYNC110
        await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert hanging.cancellations == 1
    assert len(asyncio.all_tasks()) == 1


async def test_cancelling_the_caller_of_a_stubborn_tool_does_not_hang(monkeypatch):
    monkeypatch.setattr(module, "CANCEL_GRACE_S", 0.02)
    hanging = HangingTool(swallows=1)
    toolbox = Toolbox([hanging])
    running = asyncio.create_task(toolbox.run(call("hang"), deadline_s=60.0))
    while not hanging.calls:  # noqa: ASYNC110
        await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await toolbox.aclose()
    assert len(asyncio.all_tasks()) == 1


async def test_failure_of_a_tool_left_behind_is_not_reported_as_forgotten(monkeypatch):
    monkeypatch.setattr(module, "CANCEL_GRACE_S", 0.01)
    release = asyncio.Event()
    complaints: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context))

    class Late(HangingTool):
        async def __call__(self, arguments: Mapping[str, Any]) -> str:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                await release.wait()
            raise ValueError("too late")

    await ask(Late(policy=FAST))
    release.set()
    await asyncio.sleep(0.01)
    gc.collect()
    assert complaints == []


async def test_tool_that_cancels_itself_is_an_error():
    class Suicidal(HangingTool):
        async def __call__(self, arguments: Mapping[str, Any]) -> str:
            raise asyncio.CancelledError

    assert (await ask(Suicidal())).text == "ToolError: the tool cancelled itself"


@pytest.mark.parametrize("value", [None, 3, b"bytes"])
async def test_tool_that_returns_no_text_is_an_error(value):
    class Wrong(HangingTool):
        async def __call__(self, arguments: Mapping[str, Any]) -> str:
            return value

    assert "which is not text" in (await ask(Wrong())).text


async def test_tool_that_is_not_async_gives_its_slot_back():
    class Blocking(HangingTool):
        def __call__(self, arguments: Mapping[str, Any]) -> str:  # type: ignore[override]
            return "text"

    toolbox = Toolbox([Blocking(policy=ToolPolicy(max_concurrency=1, max_queue=0))])
    for _ in range(2):
        assert (await toolbox.run(call("hang"), deadline_s=1.0)).error == "TypeError"


async def test_concurrency_is_bounded_and_a_full_queue_refuses():
    running, peak = 0, 0

    class Counting(EchoTool):
        async def __call__(self, arguments: Mapping[str, Any]) -> str:
            nonlocal running, peak
            running += 1
            peak = max(peak, running)
            await asyncio.sleep(0.005)
            running -= 1
            return "done"

    toolbox = Toolbox([Counting(policy=ToolPolicy(max_concurrency=2, max_queue=3))])
    results = await run_all(toolbox, [call(id=str(i)) for i in range(8)])
    assert peak == 2
    assert [result.error for result in results] == [None] * 5 + ["ToolBusy"] * 3


async def test_one_tool_cannot_hold_up_another():
    toolbox = Toolbox([HangingTool(policy=ToolPolicy(max_concurrency=1)), EchoTool()])
    hung = [asyncio.create_task(toolbox.run(call("hang"), deadline_s=60.0)) for _ in range(3)]
    await asyncio.sleep(0)
    assert (await toolbox.run(call(), deadline_s=5.0)).text == "hi"
    for task in hung:
        task.cancel()
    await asyncio.gather(*hung, return_exceptions=True)


async def test_calls_at_once_do_not_spoil_each_other():
    toolbox = Toolbox([EchoTool(latency_s=0.01), FailingTool(), HangingTool(policy=FAST)])
    calls = [call(text="a", id="0"), call("fail", id="1"), call("hang", id="2"), call("none", id="3"), call(id="4")]
    results = await run_all(toolbox, calls)
    assert [result.call_id for result in results] == list("01234")
    assert [result.error for result in results] == [None, "ToolError", "ToolTimeout", "ToolNotFound", None]


async def test_huge_result_is_cut_in_the_middle():
    toolbox = Toolbox([EchoTool()], max_result_chars=11)
    result = await toolbox.run(call(text="a" * 5_000_000 + "b" * 5_000_000), deadline_s=5.0)
    assert result.truncated
    assert result.text == "aaaaaa\n[9999989 characters left out]\nbbbbb"
    whole = await toolbox.run(call(text="a" * 11), deadline_s=5.0)
    assert (whole.text, whole.truncated) == ("a" * 11, False)


async def test_shortest_bound_keeps_no_tail():
    result = await Toolbox([EchoTool()], max_result_chars=1).run(call(text="abc"), deadline_s=5.0)
    assert result.text == "a\n[2 characters left out]\n"


@given(st.text(alphabet=st.characters(), max_size=40), st.integers(1, 30))
def test_every_result_can_be_encoded_and_valid_text_is_untouched(text, bound):
    result = asyncio.run(Toolbox([EchoTool()], max_result_chars=bound).run(call(text=text), deadline_s=5.0))
    result.text.encode()
    assert result.truncated == (len(text) > bound)
    if not result.truncated and not any("\ud800" <= c <= "\udfff" for c in text):
        assert result.text == text


@pytest.mark.parametrize(
    ("raw", "shown"), [("a\ud800b", "a\ufffdb"), ("\ud83d\ude00", "😀"), ("\x00\x1b[31m\r\x07", "\x00\x1b[31m\r\x07")]
)
async def test_lone_surrogates_are_replaced_and_control_characters_kept(raw, shown):
    assert (await ask(EchoTool(), text=raw)).text == shown


async def test_closing_closes_every_tool_even_if_one_fails():
    class Unclosable(EchoTool):
        async def aclose(self) -> None:
            raise OSError("still open")

    last = EchoTool(name="last")
    with pytest.raises(OSError, match="still open"):
        await Toolbox([Unclosable(), last]).aclose()
    assert last.closed == 1


def test_toolbox_serves_two_event_loops_under_contention():
    toolbox = Toolbox([EchoTool(latency_s=0.002, policy=ToolPolicy(max_concurrency=1))])
    for _ in range(2):
        results = asyncio.run(run_all(toolbox, [call(), call(), call()]))
        assert [result.text for result in results] == ["hi"] * 3


async def test_hung_plain_function_times_out_and_the_process_stays_free():
    release = threading.Event()

    @tool(timeout_s=0.02, max_concurrency=1, description="Hang.")
    def hang(text: str) -> str:
        release.wait(5)
        return text

    toolbox = Toolbox([hang])
    started = time.monotonic()
    assert (await toolbox.run(call("hang"), deadline_s=5.0)).error == "ToolTimeout"
    assert (await toolbox.run(call("hang"), deadline_s=5.0)).error == "ToolTimeout"
    assert time.monotonic() - started < 3.0
    assert hang.busy == 1
    release.set()
    await toolbox.aclose()
