from __future__ import annotations

import pytest

from icrl.runtime.tools.mcp_text import text_of

types = pytest.importorskip("mcp_types")


def image(kind: str = "image"):
    return {"type": kind, "data": "aGVsbG8=", "mimeType": f"{kind}/x"}


@pytest.mark.parametrize(
    ("content", "structured", "text"),
    [
        ([], None, ""),
        ([], {"a": [1, None]}, '{"a":[1,null]}'),
        ([{"type": "text", "text": "a"}, {"type": "text", "text": ""}], {"a": 1}, "a\n"),
        ([image()], None, "[image, image/x, 5 bytes]"),
        ([image("audio")], None, "[audio, audio/x, 5 bytes]"),
        ([{"type": "resource_link", "name": "n", "uri": "file:///n"}], None, "[resource n, file:///n]"),
        ([{"type": "resource", "resource": {"uri": "file:///n", "text": "inside"}}], None, "inside"),
        (
            [{"type": "resource", "resource": {"uri": "file:///n", "blob": "aGVsbG8=", "mimeType": "a/b"}}],
            None,
            "[resource file:///n, a/b, 5 bytes]",
        ),
    ],
)
def test_whatever_is_not_text_is_described(content, structured, text):
    result = types.CallToolResult.model_validate({"content": content, "structuredContent": structured})
    assert text_of(result) == text
