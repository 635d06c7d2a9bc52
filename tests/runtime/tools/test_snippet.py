from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icrl.runtime.sandbox.result import SandboxResult
from icrl.runtime.tools.snippet import shortened, transcript, unfenced


@pytest.mark.parametrize(
    ("code", "program"),
    [
        ("print(1)", "print(1)"),
        ("```python\nprint(1)\n```", "print(1)"),
        ("\n ```Python3 \r\nif x:\n    y\n   ```\n\n", "if x:\n    y"),
        ("```\nx\n```", "x"),
        ("```py\nx", "x"),
        ("```python\n```", ""),
        ("x = '''\n```\n'''\n", "x = '''\n```\n'''\n"),
        ("```python\na\n```\nb\n```", "a\n```\nb"),
        ("```sql\nselect\n```", "```sql\nselect\n```"),
        ("Try ```python\nx\n```", "Try ```python\nx\n```"),
        ("    x\n", "    x\n"),
    ],
)
def test_fences_come_off(code, program):
    assert unfenced(code) == program


@given(code=st.text(max_size=40).filter(lambda code: not code.lstrip().startswith("```")))
def test_what_has_no_fence_stays_and_what_gets_one_loses_it(code):
    assert unfenced(code) == code
    assert unfenced(f"```python\n{code}\n```\n") == code


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        ({}, ""),
        ({"stdout": "a\n\n"}, "a\n"),
        ({"stdout": "a", "value": "1"}, "a\n1"),
        ({"stdout": "a\n", "error": "E: b", "truncated": True}, "a\n[more was printed than is kept]\nE: b"),
        ({"value": "''"}, "''"),
        ({"error": "E"}, "E"),
    ],
)
def test_a_transcript_has_output_then_value_then_error(parts, text):
    assert transcript(SandboxResult(status="error", **parts)) == text


@given(text=st.text(max_size=60), limit=st.integers(1, 30))
def test_a_long_text_keeps_its_ends(text, limit):
    short = shortened(text, limit)
    if len(text) <= limit:
        assert short == text
        return
    head, _, tail = short.partition(f"\n[{len(text) - limit} characters left out]\n")
    assert text.startswith(head)
    assert text.endswith(tail)
    assert (len(head) + len(tail), len(head) - len(tail)) == (limit, limit % 2)
