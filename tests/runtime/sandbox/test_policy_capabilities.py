"""Under the restricted policy alone, without any lock on the process, no program gets hold of the interpreter."""

from __future__ import annotations

import pytest
from runtime.sandbox.capability_programs import ATTACKS
from runtime.sandbox.policy_child import Child


@pytest.fixture(scope="module")
def restricted():
    with Child("restricted") as child:
        yield child


@pytest.fixture(scope="module")
def plain():
    with Child("plain") as child:
        yield child


def test_there_are_enough_of_them():
    assert len(ATTACKS) >= 80


@pytest.mark.parametrize("name", ATTACKS)
def test_the_policy_keeps_it_from_what_plain_python_gives(restricted, plain, name):
    assert plain.run(ATTACKS[name])["got"]  # or it would prove nothing
    result = restricted.run(ATTACKS[name])
    assert not result["got"]
    assert result["error"]
