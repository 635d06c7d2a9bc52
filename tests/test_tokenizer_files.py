from __future__ import annotations

import json
import shutil

import pytest

from icrl.errors import ConfigError
from icrl.tiny import BASE_DIR
from icrl.tokenizer import ChatTokenizer, Special
from icrl.types import Message

TINY = ChatTokenizer.load(BASE_DIR)
USER = Message(role="user", content="Who?")
SEARCH = {"type": "function", "function": {"name": "search", "description": "Search.", "parameters": {}}}


def write(directory, name, change):
    content = json.loads((directory / name).read_text())
    change(content)
    (directory / name).write_text(json.dumps(content))


@pytest.fixture
def copy(tmp_path):
    shutil.copytree(BASE_DIR, tmp_path / "copy", ignore=shutil.ignore_patterns("*.safetensors"))
    return tmp_path / "copy"


def test_a_vocabulary_that_spells_an_added_token_is_refused(copy):
    token = {"id": TINY.encode("!")[0], "content": "!", "special": True, "lstrip": False, "rstrip": False}
    token |= {"normalized": False, "single_word": False}
    write(copy, "tokenizer.json", lambda p: p["added_tokens"].append(token))
    with pytest.raises(ConfigError, match="spells its added token '!' in plain text"):
        ChatTokenizer.load(copy)


def test_a_vocabulary_that_changes_text_is_refused(copy):
    write(copy, "tokenizer.json", lambda p: p.update(normalizer={"type": "Lowercase"}))
    write(copy, "tokenizer.json", lambda p: p["normalizer"].update(type="Strip", strip_left=True, strip_right=True))
    with pytest.raises(ConfigError, match="does not give text back"):
        ChatTokenizer.load(copy)


def test_text_is_not_normalised(copy):
    write(copy, "tokenizer.json", lambda p: p.update(normalizer={"type": "NFC"}))
    tokenizer = ChatTokenizer.load(copy)
    assert tokenizer.decode(tokenizer.encode("e\u0301")) == "e\u0301"


def test_end_tokens_come_from_every_file_and_from_the_template(copy):
    write(copy, "generation_config.json", lambda c: c.update(eos_token_id=[0, 5]))
    write(copy, "config.json", lambda c: c.update(eos_token_id=7))
    write(copy, "tokenizer_config.json", lambda c: c.update(eos_token={"content": "<|endoftext|>"}, pad_token=None))
    assert ChatTokenizer.load(copy).eos_ids == {0, 2, 5, 7}


def test_a_template_may_lie_in_the_settings(copy):
    (copy / "chat_template.jinja").unlink()
    with pytest.raises(ConfigError, match="no chat template"):
        ChatTokenizer.load(copy).render([USER])
    templates = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "with tools"}]
    write(copy, "tokenizer_config.json", lambda c: c.update(chat_template=templates))
    tokenizer = ChatTokenizer.load(copy)
    assert tokenizer.render([USER])[0].text == "plain"
    assert tokenizer.render([USER], tools=[SEARCH])[0].text == "with tools"
    write(copy, "tokenizer_config.json", lambda c: c.update(chat_template="{% generation %}one{% endgeneration %}"))
    assert ChatTokenizer.load(copy).render([USER])[0].text == "one"


def test_a_broken_template_is_named(copy):
    (copy / "chat_template.jinja").write_text("{% for %}")
    with pytest.raises(ConfigError, match=r"chat_template: .* is invalid"):
        ChatTokenizer.load(copy)


def test_tokens_that_swallow_whitespace(copy):
    write(copy, "tokenizer.json", lambda p: p["added_tokens"][2].update(rstrip=True))
    tokenizer = ChatTokenizer.load(copy)
    (rendered,) = tokenizer.render([USER], generate=False)
    assert rendered.pieces[-1] == Special(2, "<|im_end|>\n")


def test_missing_and_damaged_files_are_named(copy, tmp_path):
    with pytest.raises(ConfigError, match="neither a directory here nor a hub name"):
        ChatTokenizer.load(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"has no tokenizer\.json"):
        ChatTokenizer.load(tmp_path / "empty")
    (copy / "config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"config\.json cannot be read"):
        ChatTokenizer.load(copy)
    (copy / "config.json").write_text("[]")
    with pytest.raises(ConfigError, match="not a JSON object"):
        ChatTokenizer.load(copy)


def test_a_hub_name_is_fetched_without_weights(monkeypatch):
    import huggingface_hub

    asked = {}

    def snapshot_download(name, *, allow_patterns):
        asked[name] = allow_patterns
        return str(BASE_DIR)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert ChatTokenizer.load("someone/model").name == "someone/model"
    assert not any("safetensors" in pattern or pattern == "*" for pattern in asked["someone/model"])


def test_a_hub_failure_is_one_readable_line(monkeypatch):
    import huggingface_hub

    def snapshot_download(name, *, allow_patterns):
        raise OSError("no route to host\nand a long trace")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(ConfigError, match=r"'someone/model' is no directory here .*\(no route to host\)"):
        ChatTokenizer.load("someone/model")


def test_a_tokenizer_needs_an_end_token(copy):
    for name in ("generation_config.json", "config.json"):
        (copy / name).unlink()
    write(copy, "tokenizer_config.json", lambda c: c.pop("eos_token"))
    (copy / "chat_template.jinja").write_text("{{ messages[0].content }}")
    with pytest.raises(ConfigError, match="names no end token"):
        ChatTokenizer.load(copy)


def test_a_damaged_pipeline_is_named(copy):
    (copy / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"tokenizer\.json of .* is damaged"):
        ChatTokenizer.load(copy)
