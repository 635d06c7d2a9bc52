"""Ends groups in flight that have become unlikely to be informative."""

from __future__ import annotations

import logging
from collections import deque

from icrl.runtime.rollout.beta_binomial import chance_informative
from icrl.runtime.rollout.group import OpenGroup
from icrl.runtime.rollout.policy import RolloutPolicy
from icrl.runtime.rollout.prior import RewardHistory
from icrl.runtime.rollout.tally import Ledger
from icrl.trajectory import StopReason, Trajectory

__all__ = ["GroupStop", "stop_members"]

REMEMBERED = 512
"""Trajectories whose lengths the estimate is taken from."""
_LOG = logging.getLogger("icrl.rollout")


class GroupStop:
    """The rule of `RolloutPolicy.stop_groups_below`.

    A group is stopped when at least `stop_after` members have a reward, all the same, and the chance that one of the
    others would differ (`chance_informative`) is below the bound. Its running members are aborted at the engine, their
    tools cancelled, and its slots go to others.

    Args:
        policy: The bound, and what is known beforehand.
        ledger: Counts what is saved, and what is given up.
    """

    def __init__(self, policy: RolloutPolicy, ledger: Ledger) -> None:
        self._policy = policy
        self._ledger = ledger
        self._history = RewardHistory()
        self._lengths: deque[int] = deque(maxlen=REMEMBERED)

    def consider(self, group: OpenGroup) -> None:
        """Stop a group if it is time to, after one of its members has ended."""
        bound = self._policy.stop_groups_below
        if bound is None or group.stopped or group.complete:
            return
        chance = self._chance(group)
        if chance is not None and chance < bound:
            self._stop(group, chance)

    def learn(self, group: OpenGroup) -> None:
        """Remember the rewards of a group of which nothing more will come."""
        # Those of a dismissed group are the rewards of its quickest members, which say something else.
        if self._policy.stop_groups_below is not None and not group.dismissed:
            self._history.add(group.rewards())
            if not group.stopped:
                self._lengths.extend(group.lengths())

    def saved(self, group: OpenGroup, trajectory: Trajectory) -> None:
        """Estimate what was saved by ending one member, now that it has ended."""
        if not group.dismissed:
            self._ledger.add("tokens_saved_estimate", self._expected_beyond(group, trajectory.sampled_tokens))

    def _expected_beyond(self, group: OpenGroup, tokens: int) -> float:
        """Return how many tokens a member that has so many already can be expected to add.

        Members that still run are the longer ones, so that the mean of those that are complete says nothing of them.
        """
        longer = [length - tokens for length in (*self._lengths, *group.lengths()) if length > tokens]
        return sum(longer) / len(longer) if longer else 0.0

    def _chance(self, group: OpenGroup) -> float | None:
        rewards = group.rewards()
        if len(rewards) < self._policy.stop_after or len(set(rewards)) > 1:
            return None
        a, b = self._policy.stop_prior or self._history.prior(rewards[0])
        return chance_informative(len(rewards), len(group.waiting) + len(group.live), a=a, b=b)

    def _stop(self, group: OpenGroup, chance: float) -> None:
        running, unbegun = stop_members(group)
        if not running + unbegun:  # the others are being judged already
            return
        self._ledger.add("groups_stopped")
        self._ledger.add("members_stopped", running + unbegun)
        self._ledger.add("informative_lost_estimate", chance)
        self._ledger.add("tokens_saved_estimate", self._expected_beyond(group, 0) * unbegun)
        _LOG.info("group %s is stopped: its chance to be informative is %.3g", group.plan.id, chance)


def stop_members(group: OpenGroup) -> tuple[int, int]:
    """Make a group end with the members that are complete, or being judged.

    Returns:
        Members that are told to end, and members that will not be begun.
    """
    group.stopped = True
    unbegun = len(group.waiting)
    group.waiting.clear()
    running = [member for member in group.live if not member.judged]
    for member in running:
        member.unwanted = True
        member.stop(StopReason.ABORTED)
    return len(running), unbegun
