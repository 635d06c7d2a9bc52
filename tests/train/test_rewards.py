"""Rewards: SQuAD's metrics exactly, the response only, and no way to be paid for nothing."""

from __future__ import annotations

import itertools
import math
import string
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icrl.errors import ConfigError, DataError, RewardError
from icrl.train.rewards import QuestionReward, Score, checked, exact_match, f1, load_reward, normalize
from icrl.trajectory import Failure, Segment, StopReason, Trajectory
from icrl.types import Task

TASK = Task(query="code of Rikor?", answers=("113",))


def reply(text: str) -> Segment:
    return Segment(source="policy", role="text", ids=(1,), text=text, logprobs=(-0.5,))


def prompt(text: str) -> Segment:
    return Segment(source="prompt", role="demo", ids=(7, 8), text=text)


def trajectory(answer: str | None = "113", *segments: Segment, **fields) -> Trajectory:
    fields = {"stop_reason": StopReason.ANSWER, **fields}
    return Trajectory(id="t0", task=TASK, segments=segments or (reply("x"),), answer=answer, **fields)


def tagged(response) -> bool:
    return "<answer>" in "".join(segment.text for segment in response)


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


@given(st.text(st.characters(codec="ascii")))
def test_exact_match_ignores_case_articles_and_punctuation(text):
    if normalize(text):
        assert exact_match(f" the {text.upper().lower()}! ", [text.upper()]) == exact_match(
            text.lower(), [text.upper()]
        )
        assert exact_match(text, ["qqq zzz", text]) == f1(text, ["qqq zzz", text]) == 1.0


@pytest.mark.parametrize("nothing", [None, "", "the", "...", " A an "])
def test_an_empty_prediction_matches_nothing(nothing):
    assert exact_match(nothing, ["x"]) == f1(nothing, ["x"]) == 0.0


@pytest.mark.parametrize("metric", [exact_match, f1])
def test_golds_that_normalise_to_nothing_are_refused(metric):
    with pytest.raises(DataError, match="answers: 'The' is empty after normalisation"):
        metric("x", ["x", "The"])


def test_f1_counts_shared_words():
    assert f1("5 May 2001", ["May 5, 2001"]) == 1.0
    assert exact_match("5 May 2001", ["May 5, 2001"]) == 0.0
    assert f1("x x y", ["x"]) == 0.5
    assert f1("q", ["x", "y"]) == 0.0


@given(st.lists(st.sampled_from("wxyz"), max_size=6), st.lists(st.sampled_from("wxyz"), min_size=1, max_size=6))
def test_f1_is_symmetric_and_between_match_and_one(left, right):
    score = f1(" ".join(left), [" ".join(right)])
    assert 0.0 <= score <= 1.0
    assert score >= exact_match(" ".join(left), [" ".join(right)])
    if left:
        assert math.isclose(score, f1(" ".join(right), [" ".join(left)]))


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


@pytest.mark.parametrize("weights", [{"em_weight": -1.0}, {"format_weight": float("nan")}])
def test_weights_are_checked(weights):
    with pytest.raises(ConfigError, match=f"{next(iter(weights))}: must be a finite number >= 0"):
        QuestionReward(well_formed=tagged, **weights)


def nosy(seen: Trajectory, task: Task) -> float:
    """A reward that would read the prompt if it could, as the paper's own code does."""
    text = "".join(segment.text for segment in seen.segments)
    return len(seen.ids) + text.count("<answer>") + seen.prompt_length


prompts = st.lists(st.builds(prompt, st.sampled_from(["<answer> 113 </answer>", "113", "", "<think>"])), max_size=4)
answers = st.sampled_from(["113", "9", None])


@given(prompts, prompts, answers, st.sampled_from(["<answer> 113", "junk", ""]))
@pytest.mark.parametrize("reward", [QuestionReward(well_formed=tagged), nosy])
async def test_changing_the_prompt_never_changes_the_reward(reward, one, other, answer, text):
    score = checked(reward)
    assert await score(trajectory(answer, *one, reply(text)), TASK) == await score(
        trajectory(answer, *other, reply(text)), TASK
    )


async def test_checked_takes_plain_async_and_numeric_rewards():
    async def later(trajectory, task):
        return Score(total=2, components={"x": True})

    assert await checked(later)(trajectory(), TASK) == Score(total=2.0, components={"x": 1.0})
    assert await checked(lambda trajectory, task: 1)(trajectory(), TASK) == Score(total=1.0)


async def test_a_trajectory_that_infrastructure_broke_is_not_judged():
    def never(trajectory, task):
        raise AssertionError

    broken = trajectory(stop_reason=StopReason.ERROR, error=Failure(kind="EngineError", message="gone"))
    assert await checked(never)(broken, TASK) == Score(total=0.0)


@pytest.mark.parametrize("value", [math.nan, math.inf, None, "1", [1], 10**400])
async def test_anything_but_a_finite_number_is_a_reward_error(value):
    with pytest.raises(RewardError, match="trajectory t0: total must be a finite number"):
        await checked(lambda trajectory, task: value)(trajectory(), TASK)
    with pytest.raises(RewardError, match="trajectory t0: part must be a finite number"):
        await checked(lambda trajectory, task: Score(total=1.0, components={"part": value}))(trajectory(), TASK)


async def test_a_raising_reward_is_named_with_its_cause():
    def broken(trajectory, task):
        return task.metadata["missing"]

    with pytest.raises(RewardError, match=r"broken: trajectory t0: KeyError: 'missing'") as raised:
        await checked(broken)(trajectory(), TASK)
    assert isinstance(raised.value.__cause__, KeyError)


async def test_the_original_trajectory_is_left_alone():
    whole = trajectory("113", prompt("p"), reply("x"))
    before = replace(whole)
    await checked(nosy)(whole, TASK)
    assert whole == before


def test_load_reward_finds_modules_of_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "my_own_rewards.py").write_text("def length(trajectory, task): return 1.0\nLIMIT = 3\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    assert load_reward("my_own_rewards:length")(trajectory(), TASK) == 1.0
    with pytest.raises(ConfigError, match=r"has no 'lenght'\. Did you mean 'length'\?"):
        load_reward("my_own_rewards:lenght")
    with pytest.raises(ConfigError, match="is int, which cannot be called"):
        load_reward("my_own_rewards:LIMIT")


@pytest.mark.parametrize("spec", ["length", "rewards:", ":length", ""])
def test_a_reward_without_module_or_name_is_refused(spec):
    with pytest.raises(ConfigError, match="reward: write module:name"):
        load_reward(spec)


def test_a_missing_module_is_refused():
    with pytest.raises(ConfigError, match="reward: cannot import 'no_such_module_at_all'"):
        load_reward("no_such_module_at_all:f")


def test_rewards_tasks_and_statistics_import_without_the_training_extra():
    program = "import sys, icrl.train.rewards, icrl.train.tasks, icrl.train.statistics; print(*sys.modules)"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=root)
    assert not {"torch", "trl", "transformers", "numpy", "matplotlib"} & set(done.stdout.split())
