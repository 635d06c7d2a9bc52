from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icrl.runtime.engines.stop import StopStrings

PIECES = ("<", "/", "a", "b", ">", "</", "</a", "a>", ">b", "b</a>", "", "a>b", " ", "é")


def decode(ids: Sequence[int]) -> str:
    return "".join(PIECES[i] for i in ids)


@given(st.lists(st.integers(0, len(PIECES) - 1), min_size=1, max_size=30), st.sampled_from([("</a>",), ("a>", "b ")]))
def test_generation_ends_at_the_first_token_after_which_the_text_holds_a_stop_string(
    ids: list[int], strings: tuple[str, ...]
) -> None:
    stop = StopStrings(strings, decode)
    expected = next((n for n in range(1, len(ids) + 1) if any(s in decode(ids[:n]) for s in strings)), None)
    found = next((n for n in range(1, len(ids) + 1) if stop.ends(ids[:n])), None)
    assert found == expected


@pytest.mark.parametrize("text", ["é>", "日>"])
def test_a_character_may_be_spread_over_tokens(text: str) -> None:
    stop = StopStrings((text,), lambda ids: bytes(ids).decode("utf-8", "replace"))
    raw = list(("x" + text).encode())
    assert [stop.ends(raw[:n]) for n in range(1, len(raw) + 1)] == [False] * (len(raw) - 1) + [True]


def test_tokens_that_cannot_end_a_string_are_decoded_once() -> None:
    calls: list[int] = []

    def counted(ids: Sequence[int]) -> str:
        calls.append(len(ids))
        return decode(ids)

    stop = StopStrings(("</a>",), counted)
    for n in range(1, 200):
        assert not stop.ends([3] * n)
    assert calls == [1]


def test_a_space_that_decoding_alone_drops_still_counts() -> None:
    def spaced(ids: Sequence[int]) -> str:
        return "".join(f" {PIECES[i]}" for i in ids)[1:]

    assert StopStrings(("a >",), spaced).ends([2, 4])
