"""Many trajectories at once: groups of one task each, streamed as they complete.

The scheduler knows nothing of rewards but a callable, and nothing of training. One bad trajectory is data on its
group; it never cancels its siblings.

    plan          Plan, Score: what is asked for
    rollout       Rollout: what users hold
    policy        RolloutPolicy: what becomes of failures, stalls, and groups that teach nothing
    tally         RolloutTally: what became of everything
    batch         one call of `groups` or `collect`
    group         one group in progress; `member` one trajectory in progress
    crew          starts members, judges them, settles what became of them
    slots         who may start next
    watchdog      ends what is stuck
    concurrency   how many may be in flight, by the engine's load
    group_stop    ends groups that have become unlikely to be informative
    beta_binomial the chance that a group still becomes informative; `prior` what earlier groups say about it
"""

from __future__ import annotations

from icrl.runtime.rollout.plan import Plan, Score, Scored
from icrl.runtime.rollout.policy import RolloutPolicy
from icrl.runtime.rollout.rollout import Rollout
from icrl.runtime.rollout.tally import RolloutTally

__all__ = ["Plan", "Rollout", "RolloutPolicy", "RolloutTally", "Score", "Scored"]
