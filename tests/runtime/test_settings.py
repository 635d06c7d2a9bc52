from __future__ import annotations

import pytest
from blockbuster import BlockingError
from hypothesis import given
from hypothesis import strategies as st
from strategies import texts

from icrl.errors import DataError
from icrl.runtime.settings import FILE_NAME, AgentSettings
from icrl.tiny import BASE_DIR
from icrl.types import Limits
from icrl.wire import decode, encode

settings = st.builds(
    AgentSettings,
    dialect=texts,
    instruction=st.none() | texts,
    tools=st.lists(texts, max_size=3).map(tuple),
    index=st.none() | texts,
    hits=st.integers(1, 9),
    hit_separator=texts,
    limits=st.builds(Limits, max_turns=st.integers(1, 9), deadline_s=st.floats(0.1, 1e6)),
)


@given(settings)
def test_settings_are_read_as_they_were_written(value):
    assert decode(encode(value), AgentSettings) == value


def test_settings_lie_beside_the_weights(tmp_path):
    stored = AgentSettings(dialect="hermes", tools=("search", "mine:tool"), index="somewhere", hits=2)
    assert AgentSettings.load(tmp_path) is None
    stored.save(tmp_path)
    assert (tmp_path / FILE_NAME).is_file()
    assert AgentSettings.load(tmp_path) == stored


def test_the_embedded_model_says_how_it_is_asked():
    stored = AgentSettings.load(BASE_DIR)
    assert stored is not None
    assert (stored.dialect, stored.tools, stored.index) == ("xml", ("search",), "embedded")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "truncated"),
        ('{"dialect": 1}', r"`\$\.dialect`"),
        ('{"dialekt": "xml"}', "`dialekt`.*Did you mean 'dialect'"),
        ('{"limits": {"max_turns": 0}}', "max_turns"),
    ],
)
def test_a_damaged_file_is_refused_with_its_place(text, problem, tmp_path):
    (tmp_path / FILE_NAME).write_text(text)
    with pytest.raises(DataError, match=problem) as caught:
        AgentSettings.load(tmp_path)
    assert str(caught.value).startswith(str(tmp_path / FILE_NAME))


def test_what_cannot_be_read_or_written_is_refused(tmp_path):
    (tmp_path / FILE_NAME).mkdir()
    with pytest.raises(DataError, match="cannot be read"):
        AgentSettings.load(tmp_path)
    with pytest.raises(DataError, match="cannot be written"):
        AgentSettings().save(tmp_path)


async def test_reading_a_file_on_the_event_loop_is_caught_here():
    # The guard that all tests run under (see conftest) is on, and looks at icrl.
    with pytest.raises(BlockingError):
        AgentSettings.load(BASE_DIR)


def test_a_full_disk_is_refused(tmp_path):
    (tmp_path / FILE_NAME).symlink_to("/dev/full")
    with pytest.raises(DataError, match=r"cannot be written \(No space left"):
        AgentSettings().save(tmp_path)
