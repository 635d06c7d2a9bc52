"""What a policy promises, seen through the toolbox."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icrl.errors import ConfigError, SandboxError, ToolUnavailable
from icrl.runtime.tools import desk as module
from icrl.runtime.tools import retry
from icrl.runtime.tools.accounts import ToolAccount
from icrl.runtime.tools.cache import ToolCache
from icrl.runtime.tools.context import current
from icrl.runtime.tools.tool import ToolPolicy, tool
from icrl.runtime.tools.toolbox import Toolbox
from icrl.testing import EchoTool, HangingTool
from icrl.types import ToolCall, ToolResult
from icrl.wire import decode, encode

REPEATABLE = ToolPolicy(repeatable=True)


async def ask(toolbox: Toolbox, text: Any = "hi", *, name: str = "echo", deadline_s: float = 5.0, **options: Any):
    return await toolbox.run(ToolCall(name=name, arguments={"text": text}), deadline_s=deadline_s, **options)


async def ask_all(toolbox: Toolbox, *texts: Any, **options: Any) -> list[ToolResult]:
    return await asyncio.gather(*(ask(toolbox, text, **options) for text in texts))


class Scripted(EchoTool):
    """Raises what it is told, in order, then answers."""

    def __init__(self, *errors: Exception, **options: Any) -> None:
        super().__init__(**options)
        object.__setattr__(self, "errors", list(errors))

    __slots__ = ("errors",)

    async def __call__(self, arguments: Mapping[str, Any]) -> str:
        answer = await super().__call__(arguments)
        if self.errors:
            raise self.errors.pop(0)
        return answer


# ---- what a call knows


async def test_a_call_knows_its_session_and_how_long_it_has():
    seen = []

    @tool(timeout_s=3.0)
    async def look() -> str:
        """Look around."""
        seen.append(current())
        return ""

    @tool(timeout_s=60.0)
    def look_in_a_thread() -> str:
        """Look around."""
        seen.append(current())
        return ""

    toolbox = Toolbox([look, look_in_a_thread])
    for name, deadline_s in (("look", 60.0), ("look_in_a_thread", 9.0)):
        await toolbox.run(ToolCall(name=name), deadline_s=deadline_s, session="7/1")
    await toolbox.aclose()
    assert [context.session for context in seen] == ["7/1", "7/1"]
    assert 0 < seen[0].deadline - time.monotonic() <= 3.0
    assert 3.0 < seen[1].deadline - time.monotonic() <= 9.0
    assert current().session == ""


async def test_a_run_that_may_be_shared_belongs_to_no_session():
    seen = []

    @tool(repeatable=True)
    async def look() -> str:
        """Look around."""
        seen.append(current().session)
        return ""

    await Toolbox([look]).run(ToolCall(name="look"), deadline_s=5.0, session="7/1")
    assert seen == [""]


async def test_concurrent_calls_do_not_see_each_others_context():
    @tool
    async def look(text: str) -> str:
        """Look around."""
        await asyncio.sleep(0.001)
        return current().session

    toolbox = Toolbox([look])
    results = await asyncio.gather(*(ask(toolbox, name="look", session=str(i)) for i in range(20)))
    assert [result.text for result in results] == [str(i) for i in range(20)]


# ---- sharing and caching


async def test_members_of_a_group_share_a_run():
    echo = EchoTool(latency_s=0.01, policy=REPEATABLE)
    toolbox = Toolbox([echo])
    results = await ask_all(toolbox, *"aabaab")
    assert [result.text for result in results] == list("aabaab")
    assert Counter(call["text"] for call in echo.calls) == {"a": 1, "b": 1}
    account = toolbox.accounts["echo"]
    assert (account.calls, account.runs, account.shared) == (6, 2, 4)


async def test_only_repeatable_tools_share_and_cache():
    echo = EchoTool(latency_s=0.005)
    toolbox = Toolbox([echo], cache=ToolCache())
    await ask_all(toolbox, *"aaa")
    await ask(toolbox, "a")
    assert len(echo.calls) == 4


async def test_answers_are_cached_and_errors_are_not():
    scripted = Scripted(ToolUnavailable("down"), ValueError("bad"), policy=REPEATABLE)
    toolbox = Toolbox([scripted], cache=ToolCache())
    results = [await ask(toolbox) for _ in range(5)]
    assert [result.error for result in results] == ["ToolUnavailable", "ValueError", None, None, None]
    assert len(scripted.calls) == 3
    assert toolbox.accounts["echo"].cache_hits == 2


async def test_a_cached_answer_fits_the_toolbox_that_shows_it():
    cache = ToolCache()
    echo = EchoTool(policy=REPEATABLE)
    long, short = Toolbox([echo], cache=cache), Toolbox([echo], cache=cache, max_result_chars=4)
    assert (await ask(short, "a" * 50)).text.startswith("aa\n[46 characters")
    result = await ask(long, "a" * 50)
    assert (result.text, result.truncated, len(echo.calls)) == ("a" * 50, False, 1)


async def test_a_file_answers_once_for_all_who_ask(tmp_path):
    first, second = EchoTool(policy=REPEATABLE), EchoTool(policy=REPEATABLE, latency_s=0.01)
    toolbox = Toolbox([first], cache=ToolCache(tmp_path / "c.db"))
    await ask(toolbox)
    await toolbox.aclose()
    toolbox = Toolbox([second], cache=ToolCache(tmp_path / "c.db"))
    assert [result.text for result in await ask_all(toolbox, "hi", "hi", "ho")] == ["hi", "hi", "ho"]
    assert [call["text"] for call in second.calls] == ["ho"]
    assert toolbox.accounts["echo"].cache_hits == 1
    await toolbox.aclose()


async def test_an_answer_of_a_corpus_that_changed_meanwhile_is_not_kept():
    class Moving(EchoTool):
        async def __call__(self, arguments: Mapping[str, Any]) -> str:
            self.fingerprint = f"corpus-{len(self.calls)}"
            return await super().__call__(arguments)

    moving = Moving(policy=REPEATABLE, fingerprint="corpus-1")
    toolbox = Toolbox([moving], cache=ToolCache())
    for _ in range(2):
        await ask(toolbox)
    assert len(moving.calls) == 2
    for _ in range(3):
        await ask(toolbox)
    assert moving.fingerprint == f"corpus-{len(moving.calls) - 1}"


@settings(max_examples=30)
@given(
    st.lists(st.tuples(st.sampled_from(["v1", "v2"]), st.sampled_from([1, 1.0, "1", True, None, [1]])), max_size=15),
    st.booleans(),
)
def test_no_answer_crosses_arguments_or_fingerprints(calls, at_once):
    class Telling(EchoTool):
        async def __call__(self, arguments: Mapping[str, Any]) -> str:
            await asyncio.sleep(0)
            return f"{self.fingerprint} {arguments['text']!r}"

    async def play() -> None:
        cache = ToolCache()
        toolboxes = {
            name: Toolbox([Telling(policy=REPEATABLE, fingerprint=name)], cache=cache) for name in ("v1", "v2")
        }
        asking = [asyncio.ensure_future(ask(toolboxes[name], text)) for name, text in calls]
        for (name, text), task in zip(calls, asking, strict=True):
            if not at_once:
                await task
            assert (await task).text == f"{name} {text!r}"

    asyncio.run(play())


async def test_arguments_that_are_not_json_are_answered_without_sharing():
    echo = EchoTool(latency_s=0.005, policy=REPEATABLE)
    results = await ask_all(Toolbox([echo], cache=ToolCache()), b"x", b"x")
    assert [result.text for result in results] == ["b'x'"] * 2
    assert len(echo.calls) == 2


def test_a_repeatable_tool_has_to_say_what_decides_its_answers():
    class Bare:
        spec = EchoTool().spec
        policy = REPEATABLE

        async def __call__(self, arguments: Mapping[str, Any]) -> str:
            return ""

    with pytest.raises(ConfigError, match="'echo' is repeatable, so it needs a `fingerprint`"):
        Toolbox([Bare()])


# ---- time


async def test_one_trajectory_without_time_does_not_end_the_run_of_the_others():
    echo = EchoTool(latency_s=0.05, policy=REPEATABLE)
    toolbox = Toolbox([echo])
    hurried, patient = await asyncio.gather(ask(toolbox, deadline_s=0.01), ask(toolbox))
    assert (hurried.error, patient.text) == ("ToolTimeout", "hi")
    assert hurried.text == "ToolTimeout: echo gave no answer within 0.01 s"
    assert len(echo.calls) == 1


async def test_a_shared_run_that_hangs_ends_for_all_by_the_tools_timeout():
    hanging = HangingTool(policy=ToolPolicy(timeout_s=0.03, repeatable=True))
    toolbox = Toolbox([hanging])
    results = await ask_all(toolbox, *"aaa", name="hang")
    assert [result.error for result in results] == ["ToolTimeout"] * 3
    assert hanging.cancellations == 1
    await ask(toolbox, "a", name="hang")
    assert hanging.cancellations == 2
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_tools_own_timeout_error_is_not_taken_for_the_deadline():
    result = await ask(Toolbox([Scripted(TimeoutError("inner"), policy=REPEATABLE)]))
    assert (result.error, result.text) == ("TimeoutError", "TimeoutError: inner")


async def test_a_sandbox_that_breaks_in_a_shared_run_ends_every_trajectory_of_it():
    toolbox = Toolbox([Scripted(SandboxError("leaked"), latency_s=0.01, policy=REPEATABLE)])
    outcomes = await asyncio.gather(*(ask(toolbox) for _ in range(3)), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [SandboxError] * 3


async def test_a_shared_run_that_ignores_its_end_is_left_behind_and_ended_at_the_close(monkeypatch):
    monkeypatch.setattr(module, "CANCEL_GRACE_S", 0.02)
    hanging = HangingTool(policy=ToolPolicy(timeout_s=0.02, repeatable=True), swallows=1)
    toolbox = Toolbox([hanging])
    assert "went on after it was cancelled" in (await ask(toolbox, name="hang")).text
    await toolbox.aclose()
    assert asyncio.all_tasks() == {asyncio.current_task()}


# ---- retries and rate


async def test_what_is_unavailable_is_retried_as_often_as_the_policy_says(monkeypatch):
    monkeypatch.setattr(retry, "FIRST_WAIT_S", 0.001)
    toolbox = Toolbox([Scripted(*[ToolUnavailable("x")] * 2, policy=ToolPolicy(retries=2))])
    assert (await ask(toolbox)).text == "hi"
    account = toolbox.accounts["echo"]
    assert (account.calls, account.runs, account.retries, account.errors) == (1, 3, 2, {})
    toolbox = Toolbox([Scripted(*[ToolUnavailable("x")] * 3, policy=ToolPolicy(retries=2))])
    assert (await ask(toolbox)).text == "ToolUnavailable: x"


async def test_a_waiting_retry_holds_no_slot():
    scripted = Scripted(ToolUnavailable("x", retry_after_s=0.2), policy=ToolPolicy(retries=1, max_concurrency=1))
    toolbox = Toolbox([scripted])
    first = asyncio.create_task(ask(toolbox, "first"))
    while not scripted.calls:  # noqa: ASYNC110
        await asyncio.sleep(0)
    assert (await ask(toolbox, "second")).text == "second"
    assert not first.done()
    first.cancel()


async def test_retries_end_with_the_deadline():
    started = time.monotonic()
    toolbox = Toolbox([Scripted(*[ToolUnavailable("x")] * 99, policy=ToolPolicy(retries=99))])
    result = await ask(toolbox, deadline_s=0.1)
    assert result.error == "ToolUnavailable"
    assert time.monotonic() - started < 2.0


async def test_calls_start_at_the_rate():
    echo = EchoTool(policy=ToolPolicy(calls_per_s=100.0))
    toolbox = Toolbox([echo])
    started = time.monotonic()
    await ask_all(toolbox, *"abcdef")
    assert time.monotonic() - started >= 0.05
    assert toolbox.accounts["echo"].waited_s > 0.05


async def test_waiting_for_the_rate_counts_against_the_deadline():
    toolbox = Toolbox([EchoTool(policy=ToolPolicy(calls_per_s=0.5, max_concurrency=2))])
    results = await ask_all(toolbox, "a", "b", "c", deadline_s=0.1)
    assert results[0].error is None
    assert {result.error for result in results[1:]} <= {"ToolBusy", "ToolTimeout"}
    # Who was refused holds no slot.
    assert toolbox._desks["echo"]._gate._free == 2


# ---- accounts


async def test_accounts_add_up_and_travel():
    hanging = HangingTool(policy=ToolPolicy(timeout_s=0.02, max_concurrency=1, max_queue=0))
    toolbox = Toolbox([EchoTool(), hanging])
    await ask_all(toolbox, "é", "", "abc")
    await ask_all(toolbox, "a", "b", name="hang")
    leaving = asyncio.create_task(ask(toolbox, name="hang"))
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    broken = ToolCall(name="echo", error="never closed")
    await toolbox.run(broken, deadline_s=1.0)
    accounts = toolbox.accounts
    echo, hang = accounts["echo"], accounts["hang"]
    assert (echo.calls, echo.answered, echo.runs, echo.errors) == (4, 4, 3, {"ToolArgumentError": 1})
    assert echo.bytes_out == 5 + len("ToolArgumentError: never closed")
    assert (hang.calls, hang.answered, hang.cancelled, hang.timeouts, hang.busy) == (3, 2, 1, 1, 1)
    assert hang.run_s >= 0.02
    assert decode(encode(echo), ToolAccount) == echo


async def test_an_account_is_a_copy():
    toolbox = Toolbox([EchoTool()])
    before = toolbox.accounts["echo"]
    await ask(toolbox)
    assert (before.calls, toolbox.accounts["echo"].calls) == (0, 1)


# ---- the end of a session


class Stateful(EchoTool):
    """Remembers whose sessions ended."""

    __slots__ = ("ended", "error", "takes_s")

    def __init__(self, *, takes_s: float = 0.0, error: Exception | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.ended: list[str] = []
        self.takes_s = takes_s
        self.error = error

    async def end(self, session: str) -> None:
        await asyncio.sleep(self.takes_s)
        self.ended.append(session)
        if self.error is not None:
            raise self.error


async def test_every_tool_hears_of_the_end_whatever_another_does(caplog):
    broken, fine = Stateful(error=OSError("gone")), Stateful(name="fine")
    await Toolbox([broken, EchoTool(name="plain"), fine]).end("7/1")
    assert (broken.ended, fine.ended) == (["7/1"], ["7/1"])
    assert "tool echo could not end session 7/1: OSError('gone')" in caplog.text


async def test_a_tool_that_does_not_end_a_session_is_not_waited_for(monkeypatch, caplog):
    from icrl.runtime.tools import toolbox as door

    monkeypatch.setattr(door, "END_TIMEOUT_S", 0.02)
    slow, fine = Stateful(takes_s=60.0), Stateful(name="fine")
    async with asyncio.timeout(5):
        await Toolbox([slow, fine]).end("s")
    assert (slow.ended, fine.ended) == ([], ["s"])
    assert "TimeoutError" in caplog.text
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_an_end_whose_caller_is_cancelled_goes_on_and_the_close_waits_for_it():
    slow = Stateful(takes_s=0.05)
    toolbox = Toolbox([slow])
    ending = asyncio.create_task(toolbox.end("s"))
    await asyncio.sleep(0)
    ending.cancel()
    await asyncio.gather(ending, return_exceptions=True)
    assert slow.ended == []
    await toolbox.aclose()
    assert slow.ended == ["s"]
    assert asyncio.all_tasks() == {asyncio.current_task()}
