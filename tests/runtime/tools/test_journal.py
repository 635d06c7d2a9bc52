from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icrl.errors import ConfigError, DataError, SandboxError, ToolError
from icrl.runtime.tools.journal import Journal, Recorder, Replayer
from icrl.runtime.tools.tool import ToolPolicy
from icrl.runtime.tools.toolbox import Toolbox
from icrl.testing import EchoTool, FailingTool
from icrl.types import ToolCall, ToolResult


class Moody(EchoTool):
    """Never answers the same twice, sometimes fails, and takes its time."""

    numbers = random.Random(7)

    async def __call__(self, arguments: Mapping[str, Any]) -> str:
        await asyncio.sleep(self.numbers.random() / 1000)
        self.calls.append(arguments)
        if len(self.calls) % 5 == 0:
            raise ToolError(f"moody {len(self.calls)}")
        return f"{arguments['text']} {len(self.calls)} é\ud800" * (1 + len(self.calls) % 3)


Script = Mapping[str, list[list[str]]]
"""Per session: the turns, and the texts that are asked at once in each."""


async def play(toolbox: Toolbox, script: Script) -> dict[str, list[tuple[str, str | None, bool]]]:
    """Let the sessions run at once."""

    async def session(name: str) -> list[ToolResult]:
        results: list[ToolResult] = []
        for turn in script[name]:
            calls = [ToolCall(name="echo", arguments={"text": text}) for text in turn]
            results += await asyncio.gather(*(toolbox.run(one, deadline_s=5.0, session=name) for one in calls))
        await toolbox.end(name)
        return results

    played = await asyncio.gather(*(session(name) for name in script))
    await toolbox.aclose()
    return {
        name: [(r.text, r.error, r.truncated) for r in results] for name, results in zip(script, played, strict=True)
    }


def boxed(tool: EchoTool, journal: Journal) -> Toolbox:
    return Toolbox([tool], max_result_chars=20, journal=journal)


turns = st.lists(st.lists(st.sampled_from(["a", "b", "é"]), min_size=1, max_size=3), max_size=4)


@settings(max_examples=20)
@given(st.dictionaries(st.sampled_from(["1/0", "1/1", ""]), turns, max_size=3))
def test_a_replayed_run_is_the_recorded_one_and_calls_nothing(tmp_path_factory, script):
    path = tmp_path_factory.mktemp("journal") / "tools.jsonl"
    recorded = asyncio.run(play(boxed(Moody(), Recorder(path)), script))
    silent = Moody()
    assert asyncio.run(play(boxed(silent, Replayer(path)), script)) == recorded
    assert silent.calls == []


async def opened(kind: type[Recorder | Replayer], path: Path) -> Recorder | Replayer:
    return await asyncio.to_thread(kind, path)


async def one(toolbox: Toolbox, text: str = "hi", *, session: str = "s", name: str = "echo") -> ToolResult:
    return await toolbox.run(ToolCall(name=name, arguments={"text": text}), deadline_s=5.0, session=session)


async def test_a_session_that_comes_again_is_another_round(tmp_path):
    async def twice(toolbox: Toolbox) -> list[str]:
        texts = []
        for _ in range(2):
            texts.append((await one(toolbox)).text)
            await toolbox.end("s")
        await toolbox.aclose()
        return texts

    path = tmp_path / "j"
    recorded = await twice(boxed(Moody(), await opened(Recorder, path)))
    assert len(set(recorded)) == 2
    assert await twice(boxed(Moody(), await opened(Replayer, path))) == recorded


async def test_a_call_that_was_not_recorded_ends_the_replay(tmp_path):
    path = tmp_path / "j"
    toolbox = boxed(EchoTool(), await opened(Recorder, path))
    await one(toolbox)
    await toolbox.aclose()
    echo = EchoTool()
    replay = boxed(echo, await opened(Replayer, path))
    await one(replay)
    for text, session, problem in [
        ("hi", "s", r"call 2 of echo\(\{\"text\":\"hi\"\}\) in session 's' is not recorded; the run took"),
        ("ho", "s", r"call 1 of echo\(\{\"text\":\"ho\"\}\)"),
        ("hi", "t", "in session 't'"),
    ]:
        with pytest.raises(DataError, match=problem):
            await one(replay, text, session=session)
    assert echo.calls == []


async def test_another_corpus_is_named(tmp_path):
    path = tmp_path / "j"
    toolbox = boxed(EchoTool(fingerprint="corpus-1"), await opened(Recorder, path))
    await one(toolbox)
    await toolbox.aclose()
    with pytest.raises(DataError, match="echo was recorded as 'corpus-1' and is 'corpus-2' now"):
        await one(boxed(EchoTool(fingerprint="corpus-2"), await opened(Replayer, path)))


async def test_calls_that_reach_no_tool_are_not_recorded(tmp_path):
    path = tmp_path / "j"
    toolbox = boxed(EchoTool(), await opened(Recorder, path))
    assert (await one(toolbox, name="ecko")).error == "ToolNotFound"
    broken = ToolCall(name="echo", error="never closed")
    assert (await toolbox.run(broken, deadline_s=5.0)).error == "ToolArgumentError"
    await toolbox.aclose()
    assert path.read_bytes() == b""
    replay = boxed(EchoTool(), await opened(Replayer, path))
    assert (await one(replay, name="ecko")).error == "ToolNotFound"
    assert (await replay.run(broken, deadline_s=5.0)).error == "ToolArgumentError"


async def test_a_broken_sandbox_breaks_again(tmp_path):
    path = tmp_path / "j"
    toolbox = Toolbox([FailingTool(error=SandboxError("leaked"))], journal=await opened(Recorder, path))
    with pytest.raises(SandboxError):
        await one(toolbox, name="fail")
    await toolbox.aclose()
    fine = FailingTool()
    with pytest.raises(SandboxError, match="leaked"):
        await one(Toolbox([fine], journal=await opened(Replayer, path)), name="fail")
    assert fine.calls == []


async def test_equal_calls_in_flight_are_recorded_each(tmp_path):
    path = tmp_path / "j"
    echo = EchoTool(latency_s=0.01, policy=ToolPolicy(repeatable=True))
    toolbox = boxed(echo, await opened(Recorder, path))
    await asyncio.gather(*(one(toolbox, session=str(i)) for i in range(4)))
    await toolbox.aclose()
    assert len(echo.calls) == 1
    places = [json.loads(line)["place"] for line in path.read_text().splitlines()]
    assert sorted(place["session"] for place in places) == list("0123")


async def test_arguments_that_are_not_json_cannot_be_recorded(tmp_path):
    toolbox = boxed(EchoTool(), await opened(Recorder, tmp_path / "j"))
    with pytest.raises(DataError, match="arguments of a call of 'echo' are not JSON"):
        await toolbox.run(ToolCall(name="echo", arguments={"text": b"x"}), deadline_s=5.0)


# ---- files


def test_a_journal_is_never_overwritten(tmp_path):
    Recorder(tmp_path / "new" / "j")
    with pytest.raises(ConfigError, match="exists; replay it"):
        Recorder(tmp_path / "new" / "j")
    with pytest.raises(ConfigError, match="cannot be written"):
        Recorder(tmp_path / "new" / "j" / "k")


async def test_a_journal_that_cannot_be_written_any_more_is_an_error(tmp_path):
    path = tmp_path / "j"
    toolbox = boxed(EchoTool(), await opened(Recorder, path))
    path.unlink()
    path.mkdir()
    await one(toolbox)
    with pytest.raises(DataError, match="cannot be recorded"):
        await toolbox.aclose()


@pytest.mark.parametrize("line", ["{", "[]", '{"place": 3}', '{"text": "a", "error": null, "truncated": false}'])
def test_a_damaged_journal_is_refused_with_the_line(tmp_path, line):
    path = tmp_path / "j"
    asyncio.run(play(boxed(EchoTool(), Recorder(path)), {"s": [["a"]]}))
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(DataError, match=rf"{path}:2: "):
        Replayer(path)
    with pytest.raises(DataError, match="cannot be read"):
        Replayer(Path(tmp_path / "none"))
