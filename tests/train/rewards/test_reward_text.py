"""SQuAD's metrics, bit by bit, with the traps that come with them."""

from __future__ import annotations

import itertools
import string
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from judged import TASK, asked, reply, tagged, trajectory

from icrl.errors import ConfigError, DataError
from icrl.train.rewards import QuestionReward, exact_match, f1, normalize, overlap, strict
from icrl.types import Task


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The Hague", "hague"),
        ("  A  cat, an ant & THE dog! ", "cat ant dog"),
        ("U.S.A.", "usa"),
        ("another theatre", "another theatre"),
        ("a-b", "ab"),
        ("3.14", "314"),
        ("Saint-Étienne", "saintétienne"),
        ("“quoted” – dash", "“quoted” – dash"),
        ("a.a", "aa"),
        ("A. A. Milne", "milne"),
        ("the", ""),
        ("", ""),
    ],
)
def test_normalisation_cases(text, normal):
    assert normalize(text) == normal


def squad(text: str) -> str:
    """The same rule, written word by word, as an oracle."""
    kept = "".join(c for c in text.lower() if c not in string.punctuation)
    runs = ("".join(run) for _, run in itertools.groupby(kept, key=lambda c: c.isalnum() or c == "_"))
    return " ".join("".join(" " if run in ("a", "an", "the") else run for run in runs).split())


@given(st.text(st.sampled_from("aAnthe .,-_!é\t“")))
def test_normalisation_equals_a_second_implementation(text):
    assert normalize(text) == squad(text)


@given(st.text(st.sampled_from("aAnthe .,-_!é\t“")) | st.text())
def test_normalisation_is_idempotent(text):
    assert normalize(normalize(text)) == normalize(text)


@given(st.text(st.characters(codec="ascii")))
def test_exact_match_ignores_case_articles_and_punctuation(text):
    if normalize(text):
        assert exact_match(f" the {text.upper().lower()}! ", [text.upper()]) == exact_match(
            text.lower(), [text.upper()]
        )
        assert exact_match(text, ["qqq zzz", text]) == f1(text, ["qqq zzz", text]) == 1.0


@pytest.mark.parametrize(
    ("prediction", "gold", "em"),
    [
        ("314", "3.14", 1.0),
        ("A. A. Milne", "AA Milne", 0.0),
        ("Saint-Étienne", "Saint Etienne", 0.0),
        ("“Emma”", '"Emma"', 0.0),
        ("1990–1995", "1990-1995", 0.0),
        ("5 May 2001", "May 5, 2001", 0.0),
        ("may 5 2001", "May 5, 2001", 1.0),
    ],
)
def test_the_known_faults_of_the_rule_are_kept(prediction, gold, em):
    assert exact_match(prediction, [gold]) == em == exact_match(gold, [prediction])


@pytest.mark.parametrize("nothing", [None, "", "the", "...", " A an "])
def test_an_empty_prediction_matches_nothing(nothing):
    assert exact_match(nothing, ["x"]) == f1(nothing, ["x"]) == 0.0


@pytest.mark.parametrize("metric", [exact_match, f1])
@pytest.mark.parametrize("prediction", ["x", "A", None])
def test_golds_that_normalise_to_nothing_are_refused(metric, prediction):
    with pytest.raises(DataError, match="answers: 'The' is empty after normalisation"):
        metric(prediction, ["x", "The"])


def squad_f1(prediction: list[str], gold: list[str]) -> float:
    """The evaluation script's arithmetic, in its order."""
    common = sum((Counter(prediction) & Counter(gold)).values())
    if common == 0:
        return 0.0
    precision = 1.0 * common / len(prediction)
    recall = 1.0 * common / len(gold)
    return (2 * precision * recall) / (precision + recall)


bags = st.lists(st.sampled_from("wxyz"), max_size=9)


@given(bags, bags.filter(bool))
def test_f1_is_the_evaluation_scripts_to_the_last_bit(left, right):
    assert f1(" ".join(left), [" ".join(right)]) == squad_f1(left, right)


def test_f1_counts_shared_words():
    assert f1("5 May 2001", ["May 5, 2001"]) == 1.0
    assert f1("x x y", ["x"]) == 0.5
    assert f1("q", ["x", "y"]) == 0.0


@given(bags, bags.filter(bool))
def test_f1_is_symmetric_and_between_match_and_one(left, right):
    score = f1(" ".join(left), [" ".join(right)])
    assert exact_match(" ".join(left), [" ".join(right)]) <= score <= 1.0
    if left:
        assert score == f1(" ".join(right), [" ".join(left)])


def test_matchers_report_what_they_pay_for():
    assert strict("May 2001", asked("2001")).components == {"em": 0.0}
    assert overlap("May 2001", asked("2001")).components == {"em": 0.0, "f1": overlap("May 2001", asked("2001")).total}


@pytest.mark.parametrize(
    ("answer", "text", "total"),
    [("113", "<answer> 113", 1.0), ("113", "113", 0.9), ("9", "<answer> 9", 0.1), (None, "", 0.0)],
)
def test_question_reward_weighs_answer_and_form(answer, text, total):
    score = QuestionReward(well_formed=tagged)(trajectory(answer, reply(text)), TASK)
    assert score.total == pytest.approx(total)
    assert score.components == {"em": float(answer == "113"), "format": float("<answer>" in text)}


def test_question_reward_without_answers_pays_for_form_only():
    assert QuestionReward(well_formed=tagged)(trajectory("113"), Task(query="q")).total == 0.0


async def test_question_reward_waits_for_a_matcher_that_has_to_be_awaited_and_closes_it():
    class Slow:
        closed = False

        async def __call__(self, answer, task):
            return overlap(answer, task)

        async def aclose(self):
            self.closed = True

    slow = Slow()
    reward = QuestionReward(well_formed=tagged, match=slow, em_weight=0.5)
    score = await reward(trajectory("113 9", reply("<answer> 113 9")), TASK)
    assert score.total == pytest.approx(0.5 * f1("113 9", ["113"]) + 0.1)
    assert set(score.components) == {"em", "f1", "format"}
    await reward.aclose()
    assert slow.closed


@pytest.mark.parametrize("weights", [{"em_weight": -1.0}, {"format_weight": float("nan")}])
def test_weights_are_checked(weights):
    with pytest.raises(ConfigError, match=f"{next(iter(weights))}: must be a finite number >= 0"):
        QuestionReward(well_formed=tagged, **weights)
