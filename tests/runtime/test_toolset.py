from __future__ import annotations

import json
import textwrap

import pytest

from icrl.errors import ConfigError, DataError
from icrl.runtime.settings import EMBEDDED, AgentSettings
from icrl.runtime.tools.index import build_index
from icrl.runtime.tools.search import SearchTool
from icrl.runtime.tools.toolbox import Toolbox
from icrl.runtime.toolset import ToolingConfig, open_toolbox, open_tools
from icrl.testing import EchoTool
from icrl.types import ToolCall


@pytest.fixture
def index(tmp_path):
    """A search index of three documents."""
    lines = [json.dumps({"text": f"The code of {name} is {i}."}) for i, name in enumerate(["Rikor", "Rikor", "Balt"])]
    (tmp_path / "corpus.jsonl").write_text("\n".join(lines))
    build_index(tmp_path / "corpus.jsonl", tmp_path / "index", show_progress=False)
    return tmp_path / "index"


async def opened(settings):
    return await open_tools(settings.tools, settings)


async def test_unknown_tools_are_refused_with_the_nearest():
    with pytest.raises(ConfigError, match=r"'serch' is not one of search.* Did you mean 'search'\?"):
        await opened(AgentSettings(tools=("serch",)))


async def test_search_needs_an_index():
    with pytest.raises(ConfigError, match="build it with `icrl index"):
        await opened(AgentSettings(tools=("search",)))


async def test_search_opens_its_index_as_the_settings_say(index):
    settings = AgentSettings(tools=("search",), index=str(index), hits=2, hit_separator=" | ")
    (search,) = await opened(settings)
    assert await search({"query": "Rikor"}) == "The code of Rikor is 0. | The code of Rikor is 1."
    await search.aclose()


async def test_an_index_that_is_not_there_is_refused(tmp_path):
    with pytest.raises((ConfigError, DataError), match="index"):
        await opened(AgentSettings(tools=("search",), index=str(tmp_path / "none")))


async def test_the_embedded_index_is_built_once(cache_home, monkeypatch):
    settings = AgentSettings(tools=("search",), index=EMBEDDED, hits=1)
    (search,) = await opened(settings)
    assert isinstance(search, SearchTool)
    before = {path: path.stat().st_mtime_ns for path in cache_home.rglob("*")}
    await opened(settings)
    assert {path: path.stat().st_mtime_ns for path in cache_home.rglob("*")} == before
    assert [path.parent.name for path in before if path.name.startswith("embedded-")] == ["icrl"]


async def test_a_cache_that_cannot_be_written_is_refused_with_the_fix(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(DataError, match=r"cannot be written.*set XDG_CACHE_HOME"):
        await opened(AgentSettings(tools=("search",), index=EMBEDDED))


async def test_a_tool_of_the_users_own_is_imported_from_the_working_directory(tmp_path, monkeypatch):
    source = """
        import icrl

        LIMIT = 3

        @icrl.tool
        def shout(text: str) -> str:
            "Repeat a text loudly."
            return text.upper()
    """
    (tmp_path / "my_own_tools.py").write_text(textwrap.dedent(source))
    monkeypatch.chdir(tmp_path)
    (shout,) = await opened(AgentSettings(tools=("my_own_tools:shout",)))
    assert await shout({"text": "hi"}) == "HI"
    await shout.aclose()
    for name, problem in (("shuot", "Did you mean 'shout'"), ("LIMIT", "is not a tool; decorate")):
        with pytest.raises(ConfigError, match=problem):
            await opened(AgentSettings(tools=(f"my_own_tools:{name}",)))
    with pytest.raises(ConfigError, match="tools: cannot import 'my_own_tolls'"):
        await opened(AgentSettings(tools=("my_own_tolls:shout",)))


# ---- caches and journals


def test_a_replayed_run_neither_records_nor_caches():
    for other in ({"record": "b"}, {"cache": "memory"}):
        with pytest.raises(ConfigError, match=r"give tooling\.replay alone"):
            ToolingConfig(replay="a", **other)


async def test_a_recorded_call_is_answered_without_its_tool(tmp_path, index):
    settings = AgentSettings(tools=("search",), index=str(index), hits=1)
    call = ToolCall(name="search", arguments={"query": "Balt"}, id="0.0")
    recording = await open_toolbox(settings.tools, settings, ToolingConfig(record=tmp_path / "tools.jsonl"))
    said = await recording.run(call, deadline_s=30.0, session="t")
    await recording.aclose()
    echo = EchoTool(name="search")
    replaying = await open_toolbox([echo], settings, ToolingConfig(replay=tmp_path / "tools.jsonl"))
    with pytest.raises(DataError):  # another tool, so another fingerprint: nothing is silently different
        await replaying.run(call, deadline_s=30.0, session="t")
    await replaying.aclose()
    replaying = await open_toolbox(settings.tools, settings, ToolingConfig(replay=tmp_path / "tools.jsonl"))
    again = await replaying.run(call, deadline_s=30.0, session="t")
    await replaying.aclose()
    assert (again.text, again.error) == (said.text, None) == ("The code of Balt is 2.", None)
    assert echo.calls == []


async def test_a_cache_answers_the_second_call(index):
    settings = AgentSettings(tools=("search",), index=str(index), hits=1)
    toolbox = await open_toolbox(settings.tools, settings, ToolingConfig(cache="memory"))
    call = ToolCall(name="search", arguments={"query": "Balt"})
    first, second = [await toolbox.run(call, deadline_s=30.0) for _ in range(2)]
    assert first.text == second.text
    assert toolbox.accounts["search"].cache_hits == 1
    await toolbox.aclose()


async def test_a_toolbox_is_taken_as_it_is():
    toolbox = Toolbox([EchoTool()])
    assert await open_toolbox(toolbox, AgentSettings()) is toolbox


# ---- names


async def test_web_and_fetch_are_opened_by_name():
    web, fetch = await open_tools(["web:searxng=http://localhost:8080", "fetch"], AgentSettings())
    assert (web.spec.name, fetch.spec.name) == ("web", "fetch")
    for tool in (web, fetch):
        await tool.aclose()


async def test_a_web_search_names_its_provider():
    with pytest.raises(ConfigError, match=r"names no provider"):
        await open_tools(["web"], AgentSettings())


async def test_python_is_contained():
    (tool,) = await open_tools(["python"], AgentSettings())
    assert tool.spec.name == "python"
    await tool.aclose()
