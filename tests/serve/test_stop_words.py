from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from icrl.serve.stop_words import StopWords

LETTERS = st.text(alphabet="abé", min_size=1, max_size=4)


def shown(words, deltas):
    stop = StopWords(words)
    return [*(stop.feed(delta) for delta in deltas), stop.close()], stop.has_stopped


def cut(text, words):
    """Generate one character after another until the text ends in a stop string, and take the string off."""
    for end in range(1, len(text) + 1):
        met = [word for word in words if text[:end].endswith(word)]
        if met:
            return text[: end - max(map(len, met))], True
    return text, False


@given(words=st.lists(LETTERS, max_size=4), deltas=st.lists(st.text(alphabet="abé", max_size=6), max_size=8))
def test_however_divided_it_ends_before_the_first_stop_string(words, deltas):
    text, stopped = shown(words, deltas)
    assert ("".join(text), stopped) == cut("".join(deltas), words)


@given(word=LETTERS, deltas=st.lists(st.text(alphabet="abé", max_size=6), max_size=8))
def test_one_stop_string_splits_like_str(word, deltas):
    text, _ = shown([word], deltas)
    assert "".join(text) == "".join(deltas).split(word)[0]


@given(words=st.lists(LETTERS, min_size=1, max_size=3), text=st.text(alphabet="abé", max_size=20))
def test_little_is_held_back(words, text):
    stop, told = StopWords(words), 0
    for count, character in enumerate(text, 1):
        told += len(stop.feed(character))
        assert stop.has_stopped or count - told < max(map(len, words))


def test_a_shorter_stop_string_inside_a_longer_one_comes_first():
    assert shown(["abcd", "bc"], ["ab", "cd"]) == (["", "a", ""], True)
    assert shown(["abcd", "bc"], ["abcd"]) == (["a", ""], True)


def test_nothing_is_held_without_stop_strings():
    assert shown([], ["a", "b"]) == (["a", "b", ""], False)
