from __future__ import annotations

import json

import pytest

from icrl.errors import DataError
from icrl.runtime.prompt import load_demonstrations
from icrl.tiny import DEMONSTRATIONS
from icrl.types import Demonstration, Step

RECORD = {
    "question": "Who?",
    "answer": "Me",
    "thought": "Clear.",
    "steps": [{"tool": "search", "arguments": {"query": "who"}, "result": "Me.", "thought": "Look."}],
}
WANTED = Demonstration(
    query="Who?",
    answer="Me",
    thought="Clear.",
    steps=(Step(tool="search", arguments={"query": "who"}, result="Me.", thought="Look."),),
)


def write(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def test_json_lines(tmp_path):
    path = write(tmp_path, "d.jsonl", f"{json.dumps(RECORD)}\n\n{json.dumps({'query': 'q', 'answer': 'a'})}\n")
    assert load_demonstrations(path) == (WANTED, Demonstration(query="q", answer="a"))


@pytest.mark.parametrize("name", ["d.yaml", "d.yml"])
def test_yaml(tmp_path, name):
    text = """
- question: Who?
  answer: Me
  thought: Clear.
  steps:
  - {tool: search, arguments: {query: who}, result: Me., thought: Look.}
"""
    assert load_demonstrations(str(write(tmp_path, name, text))) == (WANTED,)


def test_the_embedded_ones():
    demonstrations = load_demonstrations(DEMONSTRATIONS)
    assert len(demonstrations) >= 8
    assert all(d.steps and d.answer in d.steps[-1].result for d in demonstrations)


def record(**changes):
    return json.dumps({**RECORD, **changes})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"d\.jsonl:2: .*truncated"),
        ("[1]", r"d\.jsonl:2: a demonstration must be a mapping, not \[1\]"),
        (record(anwser="x"), r"d\.jsonl:2: anwser is not a field\. Did you mean 'answer'\?"),
        (record(steps=[{"tol": "x"}]), r"d\.jsonl:2: steps\[0\]\.tol is not a field\. Did you mean 'tool'\?"),
        (record(steps=["x"]), r"d\.jsonl:2: steps\[0\] must be a mapping, not 'x'"),
        (record(steps={}), r"d\.jsonl:2: Expected `array`, got `object` - at `\$\.steps`"),
        (record(answer=113), r"d\.jsonl:2: Expected `str`, got `int` - at `\$\.answer`"),
        (record(steps=[{"tool": "s", "arguments": {}}]), r"d\.jsonl:2: .*missing required field `result`"),
        (record(query="again"), r"d\.jsonl:2: question and query are the same field"),
        ('{"answer": "a"}', r"d\.jsonl:2: .*missing required field `query`"),
    ],
)
def test_a_broken_record_is_named(tmp_path, line, message):
    path = write(tmp_path, "d.jsonl", json.dumps(RECORD) + "\n" + line + "\n")
    with pytest.raises(DataError, match=message):
        load_demonstrations(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- question: a\n  answer: b\n- question: [", r"d\.yaml:3: "),
        ("- question: a\n  answer: b\n- question: c\n  answr: d\n", r"d\.yaml:3: answr is not a field"),
        ("question: a\n", r"d\.yaml:1: must be a list of demonstrations"),
        ("- question: a\n  answer: 113\n", r"d\.yaml:1: Expected `str`, got `int` - at `\$\.answer`; put it in quotes"),
        ("- !!python/name:os.system a\n", r"d\.yaml:1: could not determine a constructor"),
        ("- \x07\n", r"d\.yaml: .*special characters"),
        ("", r"d\.yaml: holds no demonstrations"),
        ("- a\n---\n- b\n", r"d\.yaml:2: but found another document"),
    ],
)
def test_broken_yaml_is_named(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        load_demonstrations(write(tmp_path, "d.yaml", text))


def test_files_that_cannot_be_demonstrations(tmp_path):
    with pytest.raises(DataError, match=r"not '\.txt'"):
        load_demonstrations(write(tmp_path, "d.txt", ""))
    with pytest.raises(DataError, match="cannot be read"):
        load_demonstrations(tmp_path / "nowhere.jsonl")
    (tmp_path / "bytes.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="cannot be read"):
        load_demonstrations(tmp_path / "bytes.jsonl")
    with pytest.raises(DataError, match="holds no demonstrations"):
        load_demonstrations(write(tmp_path, "e.jsonl", "\n\n"))
