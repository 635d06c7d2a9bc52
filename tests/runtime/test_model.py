from __future__ import annotations

import shutil
from dataclasses import replace

import pytest

from icrl.errors import ConfigError, DataError, EngineError
from icrl.runtime import model as module
from icrl.runtime.dialect import HermesDialect, XmlDialect
from icrl.runtime.engines.local import LocalEngine, LocalEngineConfig
from icrl.runtime.engines.protocol import EngineInfo
from icrl.runtime.model import find_model, open_model
from icrl.runtime.settings import AgentSettings
from icrl.testing import ByteTokenizer, EchoTool, ScriptedEngine
from icrl.tiny import BASE_DIR
from icrl.types import Limits, Message, SamplingParams


@pytest.fixture
def directory(tmp_path):
    """A model directory without settings."""
    model = tmp_path / "mine"
    shutil.copytree(BASE_DIR, model)
    (model / "icrl.json").unlink()
    return model


@pytest.fixture
def own_directory(directory):
    """A model directory with settings of its own."""
    AgentSettings(instruction="Of its own.", limits=Limits(max_turns=5)).save(directory)
    return directory


# ---- finding


def test_no_name_is_the_embedded_model():
    assert find_model(None) == BASE_DIR


def test_a_model_directory_and_a_run_directory_are_found(tmp_path):
    assert find_model(BASE_DIR) == BASE_DIR
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model").symlink_to(BASE_DIR)
    assert find_model(str(tmp_path / "run")) == tmp_path / "run" / "model"


def test_the_home_directory_may_be_abbreviated(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine").symlink_to(BASE_DIR)
    assert find_model("~/mine") == tmp_path / "mine"


def test_a_misspelt_directory_is_refused_with_the_nearest(tmp_path):
    (tmp_path / "model-a").mkdir()
    with pytest.raises(ConfigError, match=r"no config\.json\. Did you mean 'model-a'\?$"):
        find_model(tmp_path / "model-b")


@pytest.mark.parametrize("source", ["Qwen", "", "./here", "~/there", "a/b/c"])
def test_what_is_neither_directory_nor_hub_name_is_refused(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=f"model: '{source}' holds no model"):
        find_model(source)


def test_a_hub_name_is_fetched(monkeypatch):
    asked = []
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **_: asked.append(name) or str(BASE_DIR))
    assert find_model("owner/name") == BASE_DIR
    assert asked == ["owner/name"]


def test_a_hub_name_that_cannot_be_fetched_is_refused_with_the_reason(monkeypatch):
    def fail(name, **_):
        raise OSError("no route to host\nand more")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(ConfigError, match=r"'owner/name' .* could not be fetched \(no route to host\)$"):
        find_model("owner/name")


# ---- opening


async def test_an_engine_brings_its_tokenizer_and_stays_its_owners():
    engine = ScriptedEngine([])
    model = await open_model(engine, limits=Limits(max_turns=2), instruction="Reply.")
    assert model.engine is engine
    assert model.tokenizer is engine.tokenizer
    assert (model.limits.max_turns, model.settings.instruction) == (2, "Reply.")
    assert isinstance(model.dialect, XmlDialect)
    assert model.toolbox.specs == ()
    await model.aclose()
    assert not engine.closed


async def test_an_engine_without_tokenizer_needs_one():
    class Bare(ScriptedEngine):
        info = EngineInfo(name="scripted", vocab_size=9, context_limit=9)

    engine = Bare([])
    del engine.tokenizer
    with pytest.raises(ConfigError, match=r"engine 'scripted' has none; pass tokenizer="):
        await open_model(engine)


async def test_what_is_given_wins_over_what_is_stored():
    stored = AgentSettings(dialect="hermes", instruction="Stored.", tools=("search",), limits=Limits(max_turns=1))
    tokenizer, echo = ByteTokenizer(), EchoTool()
    model = await open_model(
        ScriptedEngine([]), settings=stored, dialect=XmlDialect(), instruction="", tools=[echo], tokenizer=tokenizer
    )
    assert isinstance(model.dialect, XmlDialect)
    assert model.tokenizer is tokenizer
    assert model.settings.instruction == ""
    assert model.limits.max_turns == 1
    assert [spec.name for spec in model.toolbox.specs] == ["echo"]
    plain = await open_model(ScriptedEngine([]), settings=stored, tools=[])
    assert isinstance(plain.dialect, HermesDialect)
    assert plain.settings.instruction == "Stored."


async def test_limits_may_be_made_of_the_stored_ones(own_directory):
    model = await open_model(own_directory, limits=lambda own: replace(own, max_tokens=own.max_turns * 100))
    await model.aclose()
    assert (model.limits.max_turns, model.limits.max_tokens) == (5, 500)


async def test_a_tokenizer_may_be_named(directory):
    model = await open_model(ScriptedEngine([]), tokenizer=directory)
    assert model.tokenizer.name == str(directory)


async def test_an_engine_that_has_to_connect_is_started():
    class Connecting(ScriptedEngine):
        starts = 0

        async def start(self):
            self.starts += 1
            if self.starts > 1:
                raise EngineError("gone", engine="e")

    engine = Connecting([])
    await open_model(engine)
    assert engine.starts == 1
    with pytest.raises(EngineError, match="gone"):
        await open_model(engine)


async def test_a_directory_is_opened_with_the_settings_beside_it(own_directory):
    model = await open_model(own_directory)
    try:
        assert model.owns_engine
        assert model.limits.max_turns == 5
        (segment,) = model.prompt([Message(role="user", content="?")], ())[:1]
        assert segment.text.endswith("Of its own.\n\n")
    finally:
        await model.aclose()


async def test_a_directory_without_settings_has_the_usual_ones(directory):
    model = await open_model(directory)
    await model.aclose()
    assert model.settings == AgentSettings()


async def test_damaged_settings_are_refused_with_their_file(directory):
    (directory / "icrl.json").write_text('{"dialect": 3}')
    with pytest.raises(DataError, match=r"icrl\.json: AgentSettings: .*dialect"):
        await open_model(directory)


async def test_weights_are_loaded_at_the_opening(directory):
    (directory / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="mine"):
        await open_model(directory)


async def test_an_engine_that_was_given_is_loaded_but_not_closed():
    engine = LocalEngine(LocalEngineConfig(model=str(BASE_DIR)), tokenizer=ByteTokenizer())
    model = await open_model(engine)
    await model.aclose()
    try:
        assert not model.owns_engine
        reply = await engine.generate([5], SamplingParams(max_tokens=1), request_id="r")
        assert len(reply.ids) == 1
    finally:
        await engine.aclose()


def test_only_public_names_are_promised():
    assert all(getattr(module, name).__doc__ for name in module.__all__)
