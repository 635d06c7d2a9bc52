from __future__ import annotations

from random import Random

import pytest

from icrl.tiny import words


def test_reserved_words_are_never_offered_as_tags():
    assert not set(words.RESERVED) & set(words.TAGS)
    assert not set(words.RESERVED) & set(words.WORDS)


def test_every_reserved_tag_of_the_later_worlds_is_named():
    later = "think search information answer python code output result interpreter tool_call tool_response"
    assert set(words.RESERVED) == set(later.split())


def test_names_are_distinct_and_plenty():
    assert len(set(words.NAMES)) == len(words.NAMES)
    assert len(words.NAMES) > 4 * 1000


def test_no_name_is_an_attribute():
    assert "Baker" in {s + e for s in words.NAME_STARTS for e in words.NAME_ENDS}
    assert not {n.lower() for n in words.NAMES} & set(words.ATTRIBUTES)


@pytest.mark.parametrize("attribute", words.ATTRIBUTES)
def test_values_fit_their_attribute(attribute: str):
    random = Random(0)
    for _ in range(20):
        fact = words.draw_fact(random, attribute=attribute, entity="Rikor")
        assert (fact.attribute, fact.entity) == (attribute, "Rikor")
        if attribute in words.NUMBERED_ATTRIBUTES:
            assert 2 <= int(fact.value) <= 999
        else:
            allowed = words.LISTED_ATTRIBUTES.get(attribute, words.NAMES)
            assert fact.value in allowed


def test_units_are_distinct_and_hold_both_forms_of_a_word():
    units = words.units()
    assert len(set(units)) == len(units)
    assert {"search", " search", "Search", " mayor", "mayor", " Ba", "Ba", "gan", "\n\n", "</"} <= set(units)
    assert not any("_" in u and len(u) > 2 for u in units)
