from __future__ import annotations

from itertools import groupby

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icrl.errors import ConfigError
from icrl.runtime.dialect import FenceDialect, HermesDialect, XmlDialect, find_dialect
from icrl.runtime.dialects.fence_text import unboxed
from icrl.runtime.tools.tool import ToolSpec
from icrl.tiny import BASE_DIR
from icrl.tokenizer import ChatTokenizer

TINY = ChatTokenizer.load(BASE_DIR)
SEARCH = ToolSpec(
    name="search",
    description="Search.",
    parameters={"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]},
)
FENCES = ["```python\n", "\n```\n", "```text\n", "`", "<code>", "</code>", "\\boxed{", "}"]
FRAGMENTS = [
    *FENCES,
    "<think>",
    "</think>",
    "<search>",
    "</search>",
    "<answer>",
    "</answer>",
    "<tool_call>",
    "</tool_call>",
]
turns = st.lists(st.sampled_from([*FRAGMENTS, '{"name": "search"}', " x ", '"', "\n"]), max_size=10).map("".join)


def test_dialects_by_name():
    assert find_dialect("xml") == XmlDialect()
    assert find_dialect("hermes") == HermesDialect()
    assert find_dialect("fence") == FenceDialect()
    with pytest.raises(ConfigError, match=r"'hermse' is not one of xml, hermes, fence\. Did you mean 'hermes'\?"):
        find_dialect("hermse")


@pytest.mark.parametrize("name", ["xml", "hermes", "fence"])
@given(text=turns, size=st.integers(1, 9))
def test_the_streaming_parser_agrees_with_parse(name, text, size):
    dialect = find_dialect(name)
    reply = dialect.parse(TINY, TINY.encode(text), tools=[SEARCH], turn=0)
    parser = dialect.parser(TINY, tools=[SEARCH])
    pieces = [piece for at in range(0, len(text), size) for piece in parser.feed(text[at : at + size])] + parser.close()
    blocks = [
        (kind, "".join(piece.text for piece in run))
        for (kind, _), run in groupby(pieces, key=lambda piece: (piece.kind, piece.block))
    ]
    sound = [call for call in reply.calls if call.error is None]
    called = [body.strip() for kind, body in blocks if kind == "call"]
    if name == "xml":
        assert all(call.arguments["query"] in called for call in sound)
        assert not reply.answer or reply.answer in [body.strip() for kind, body in blocks if kind == "answer"]
    elif name == "fence":
        assert all(call.arguments["query"].strip() in "".join(called) for call in sound)
        said = [body for kind, body in blocks if kind == "answer"]
        assert not reply.answer or reply.answer in [text.strip() for body in said for text in (body, unboxed(body))]
        assert reply.calls or not called
    else:
        assert len(reply.calls) >= len(called)
        assert reply.calls or (reply.answer or "") == "".join(body for kind, body in blocks if kind == "text").strip()
    thought = "".join(body for kind, body in blocks if kind == "thought")
    assert "".join(reply.thought.split()) == "".join(thought.split())


@pytest.mark.parametrize("name", ["xml", "hermes", "fence"])
@given(ids=st.lists(st.integers(0, TINY.vocab_size - 1), max_size=40))
def test_any_tokens_can_be_parsed(name, ids):
    reply = find_dialect(name).parse(TINY, ids, tools=[SEARCH], turn=7)
    assert reply.text == TINY.decode(ids)
    assert all(0 <= call.start < call.end <= len(ids) for call in reply.calls)
    assert [call.id for call in reply.calls] == [f"7.{i}" for i in range(len(reply.calls))]
