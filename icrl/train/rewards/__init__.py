"""Rewards: a trajectory and its task become a number and named parts.

A reward reads the response only. `checked` makes that true of every reward, a user's too: it takes the prompt away
before the reward sees the trajectory, so demonstrations in the prompt can never be paid for.

    score          Score, Reward, and the guard around every reward
    question       QuestionReward: a matcher judges the answer, the dialect the form
    text           SQuAD's metrics to the letter: normalize, exact_match, f1, and their matchers
    robust, sets   matchers that forgive typography, and order
    mathematics    MathMatcher: equal as mathematics; `verification` is what its processes run
    programs       ProgramMatcher: the answer is a program, and passes tests in a sandbox
    efficiency     less for a right answer that took needless tool calls
    weighted       sums of named rewards
    selection      rewards by name
"""

from __future__ import annotations

from icrl.train.rewards.efficiency import EfficientReward
from icrl.train.rewards.mathematics import MathMatcher
from icrl.train.rewards.programs import ProgramMatcher
from icrl.train.rewards.question import Matcher, QuestionReward
from icrl.train.rewards.robust import normalize_robustly, robust
from icrl.train.rewards.score import Reward, Score, checked, close_reward, load_reward
from icrl.train.rewards.selection import find_reward
from icrl.train.rewards.sets import items, same_set
from icrl.train.rewards.text import exact_match, f1, normalize, overlap, strict
from icrl.train.rewards.weighted import Part, WeightedReward

__all__ = [
    "EfficientReward",
    "Matcher",
    "MathMatcher",
    "Part",
    "ProgramMatcher",
    "QuestionReward",
    "Reward",
    "Score",
    "WeightedReward",
    "checked",
    "close_reward",
    "exact_match",
    "f1",
    "find_reward",
    "items",
    "load_reward",
    "normalize",
    "normalize_robustly",
    "overlap",
    "robust",
    "same_set",
    "strict",
]
