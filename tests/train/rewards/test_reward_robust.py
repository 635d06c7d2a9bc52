"""Robust matching: typography does not count, numbers do."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from judged import asked

from icrl.errors import DataError
from icrl.train.rewards import items, normalize_robustly, robust, same_set


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("A. A. Milne", "AA Milne"),
        ("J.K. Rowling", "J. K. Rowling"),
        ("U.S.A.", "USA"),
        ("Saint-Étienne", "Saint Etienne"),
        ("“Emma”", '"Emma"'),
        ("O’Brien", "O'Brien"),
        ("1990–1995", "1990-1995"),
        ("−5", "-5"),
        ("the Hague", "Hague"),
        ("1,000,000", "1000000"),
        (".5", "0.5"),
        ("3½", "3 1/2"),
        ("ﬁsh", "FISH"),
        ("Straße", "STRASSE"),
        ("Pa\u200bris\u202e", "paris"),
        ("may 5 2001", "May 5, 2001"),
        ("cafe\u0301", "café"),
        ("3.14.", "3.14"),
    ],
)
def test_what_typography_changes_still_matches(one, other):
    assert normalize_robustly(one) == normalize_robustly(other)
    assert robust(one, asked(other)).components == {"em": 1.0} == robust(other, asked(one)).components


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("3.14", "314"),
        ("-5", "5"),
        (".5", "5"),
        ("10⁵", "105"),
        ("1/2", "12"),
        ("5%", "5"),
        ("C++", "C"),
        ("C#", "C"),
        ("A", "The"),
        ("vitamin A", "vitamin"),
        ("5 May 2001", "May 5, 2001"),
        ("й", "и"),
        ("が", "か"),
    ],
)
def test_what_means_something_else_does_not_match(one, other):
    assert robust(one, asked(other)).total == 0.0 == robust(other, asked(one)).total


@given(st.text() | st.text(st.sampled_from("aAnthe .,-_!é\t“½⁵²3/1,000'’−İßﬃ\u0301\u0327%\u00ad\u200b´ơ")))
@example("\u0149")
@example("\u1fef")
def test_normalisation_is_idempotent(text):
    once = normalize_robustly(text)
    assert normalize_robustly(once) == once


@given(st.text(), st.text())
def test_matching_is_symmetric(one, other):
    if normalize_robustly(one) and normalize_robustly(other):
        assert robust(one, asked(other)) == robust(other, asked(one))
        assert robust(one, asked(one)).total == 1.0


@pytest.mark.parametrize("nothing", [None, "", "…", "()"])
def test_nothing_matches_nothing(nothing):
    assert robust(nothing, asked("x")).total == 0.0 == same_set(nothing, asked("x")).total


@pytest.mark.parametrize("matcher", [robust, same_set])
def test_golds_without_content_are_refused(matcher):
    with pytest.raises(DataError, match=r"answers: '\.\.\.' .* nothing could match it"):
        matcher("x", asked("x", "..."))


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("Rome and Paris", "Paris, Rome"),
        ("- Paris\n- Rome", "Rome & Paris"),
        ("1. Rome\n  2) Paris", "Paris; Rome"),
        ('["Rome", "Paris"]', "Paris, Rome, Paris"),
        ("{3, 1}", "1,3"),
        ("x, y, and z", "z y x".replace(" ", ",")),
        ("1,000 and 2", "2, 1000"),
        ('["Washington, D.C."]', '["washington dc"]'),
    ],
)
def test_lists_match_in_any_order_and_notation(answer, gold):
    assert same_set(answer, asked(gold)).components == {"em": 1.0, "f1": 1.0}
    assert same_set(gold, asked(answer)).total == 1.0


def test_naming_more_or_less_than_asked_is_not_right():
    task = asked("Paris, Rome", "Oslo")
    assert same_set("Paris", task).components == {"em": 0.0, "f1": pytest.approx(2 / 3)}
    assert same_set("Paris, Rome, Oslo", task).components == {"em": 0.0, "f1": pytest.approx(0.8)}
    assert same_set("Oslo", task).components == {"em": 1.0, "f1": 1.0}


def test_naming_an_item_twice_pays_nothing_more():
    assert same_set("Paris, Paris, Paris", asked("Paris, Rome")) == same_set("Paris", asked("Paris, Rome"))


@pytest.mark.parametrize("text", ["[1, 2", "[[1], 2]", '[{"a": 1}]', "[" * 100_000, "\n" * 100_000, " and" * 20_000])
def test_odd_lists_are_read_quickly_and_without_error(text):
    assert len(items(text)) <= 3


@given(st.lists(st.sampled_from(["rome", "paris", "oslo", "3.14"])), st.randoms())
def test_order_and_repetition_never_count(names, random):
    shuffled = [*names, *names[:2]]
    random.shuffle(shuffled)
    assert items(", ".join(names)) == items("; ".join(shuffled)) == frozenset(names)
