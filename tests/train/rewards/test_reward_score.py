"""The guard around every reward: the response only, finite numbers only, and errors that say whose."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from judged import TASK, prompt, reply, tagged, trajectory

from icrl.errors import ConfigError, RewardError
from icrl.train.rewards import QuestionReward, Score, checked, close_reward, load_reward
from icrl.trajectory import Failure, StopReason, Trajectory
from icrl.types import Task


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


async def test_closing_reaches_what_holds_something_and_passes_over_the_rest():
    class Holder:
        open = True

        async def aclose(self):
            self.open = False

    holder = Holder()
    await close_reward(holder)
    await close_reward(nosy)
    assert not holder.open


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


def test_the_documented_name_of_a_metric_loads():
    assert load_reward("icrl.train.rewards:exact_match")("the 113", ["113"]) == 1.0


def test_rewards_tasks_and_statistics_import_without_heavy_libraries():
    program = "import sys, icrl.train.rewards, icrl.train.tasks, icrl.train.statistics; print(*sys.modules)"
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=root)
    assert not {"torch", "trl", "transformers", "numpy", "matplotlib", "sympy", "math_verify"} & set(
        done.stdout.split()
    )
