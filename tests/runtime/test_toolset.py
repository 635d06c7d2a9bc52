from __future__ import annotations

import json
import textwrap

import pytest

from icrl.errors import ConfigError, DataError
from icrl.runtime.settings import EMBEDDED, AgentSettings
from icrl.runtime.tools.index import build_index
from icrl.runtime.tools.search import SearchTool
from icrl.runtime.toolset import open_tools


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
