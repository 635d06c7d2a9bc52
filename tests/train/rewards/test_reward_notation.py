"""Reading mathematical answers: boxes, delimiters, whole numbers, plain notation."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icrl.train.rewards.notation import as_latex, boxed, final_answer, whole_number


@pytest.mark.parametrize(
    ("text", "inside"),
    [
        (r"\boxed{7}", "7"),
        (r"first \boxed{1}, then \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}} done", r"\frac{1}{2}"),
        (r"\boxed {\{1,2\}}", r"\{1,2\}"),
        (r"\boxed{\boxed{5}}", "5"),
        (r"\boxed{5", None),
        (r"\boxed", None),
        ("7", None),
        (r"\boxed{}", ""),
    ],
)
def test_the_last_box_counts(text, inside):
    assert boxed(text) == inside


@given(st.text(st.sampled_from("ab{}\\ ")))
def test_a_box_that_closes_gives_back_balanced_content(text):
    inside = boxed(rf"\boxed{{{text}}}")
    if inside is not None and "\\" not in text:
        assert inside.count("{") == inside.count("}")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"$\frac12$.", r"\frac12"),
        (r"\(x\)", "x"),
        (r"\[ x \]", "x"),
        ("$$5$$", "5"),
        ("$1$ or $2$", "$1$ or $2$"),
        (r"\boxed{$5$}", "5"),
        ("$", "$"),
        (" 5 . ", "5"),
        (None, ""),
        ("\ud800", "?"),
    ],
)
def test_delimiters_are_taken_off(text, answer):
    assert final_answer(text) == answer


@pytest.mark.parametrize(
    ("answer", "number"),
    [
        ("073", 73),
        ("1,000", 1000),
        ("1{,}000", 1000),
        (r"5\,000", 5000),
        ("1 000", 1000),
        ("−5", -5),
        ("+5", 5),
        ("9" * 512, int("9" * 512)),
        ("9" * 513, None),
        ("10,00", None),
        ("5.0", None),
        ("٣", None),
        ("1/2", None),
        ("", None),
    ],
)
def test_whole_numbers(answer, number):
    assert whole_number(answer) == number


@given(st.integers())
def test_every_whole_number_is_read_as_itself(number):
    assert whole_number(f"{number:,}") == whole_number(str(number)) == number


@pytest.mark.parametrize(
    ("plain", "latex"),
    [
        ("1/2", "$1/2$"),
        ("{1,3}", r"$\{1,3\}$"),
        ("2**3", "$2^3$"),
        (r"\pi", r"$\pi$"),
        ("alpha_pi", r"$alpha_\pi $"),
        ("x is $5$", "x is $5$"),
        (r"so \(5\)", r"so \(5\)"),
        (r"\$5", r"$\$5$"),
    ],
)
def test_plain_notation_becomes_latex(plain, latex):
    assert as_latex(plain) == latex
