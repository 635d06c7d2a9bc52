"""What became of everything that a rollout began."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields

__all__ = ["Ledger", "RolloutTally"]

_REGULAR = ("started", "finished", "groups", "tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutTally:
    """Counts since a `Rollout` was made; a snapshot.

    Every trajectory that was started is `finished`, `cancelled`, or in flight.

    Example:
        >>> RolloutTally(started=8, finished=5, cancelled=1).in_flight
        2
    """

    started: int = 0
    """Trajectories begun."""
    finished: int = 0
    """Trajectories that came to an end with a label, partial ones and failed ones included."""
    cancelled: int = 0
    """Trajectories torn down without one, because the rollout was left, or something raised."""
    failed: int = 0
    """Finished trajectories that something other than the policy ended (`StopReason.failed`)."""
    replaced: int = 0
    """Failed trajectories in whose place another was begun."""
    dropped: int = 0
    """Failed trajectories that were left out of their group."""
    stalled: Mapping[str, int] = field(default_factory=dict)
    """Trajectories that the watchdog ended, by what they waited for: `engine`, `tool NAME`, `score`, `end`."""
    abandoned: int = 0
    """Trajectories whose task ignored its cancellation and was left behind."""
    score_failures: int = 0
    """Trajectories whose reward raised `RewardError`."""
    groups: int = 0
    """Groups handed over."""
    groups_stopped: int = 0
    """Groups ended in flight because they had become unlikely to be informative."""
    members_stopped: int = 0
    """Members of such groups that were ended, or never begun."""
    tokens_saved_estimate: float = 0.0
    """Tokens those members would have sampled: for each, the mean excess of earlier trajectories over what it had."""
    informative_lost_estimate: float = 0.0
    """Groups that would have become informative: the sum of the chances at which groups were stopped."""
    groups_surplus: int = 0
    """Complete groups that were over-sampled and not kept."""
    groups_cancelled: int = 0
    """Over-sampled groups that were ended in flight because enough others were complete."""
    groups_unbegun: int = 0
    """Over-sampled groups that were never begun."""
    groups_left: int = 0
    """Groups, complete or not, that nobody took, as their call was left or cancelled, or raised."""
    tokens: int = 0
    """Tokens sampled in finished trajectories."""
    tokens_discarded: int = 0
    """Of those, tokens of trajectories that are in no group handed over: replaced, dropped, stopped, surplus, left."""
    probes_failed: int = 0
    """Questions for the engine's load without an answer."""

    @property
    def in_flight(self) -> int:
        """Trajectories begun and not yet ended."""
        return self.started - self.finished - self.cancelled

    def irregular(self, before: RolloutTally) -> dict[str, float]:
        """Return what was counted since another snapshot, without what every rollout counts.

        Example:
            >>> RolloutTally(started=8, failed=3, stalled={"engine": 1}).irregular(RolloutTally(failed=1))
            {'failed': 2, 'stalled': 1}
        """
        counts = {f.name: _total(getattr(self, f.name)) - _total(getattr(before, f.name)) for f in fields(self)}
        return {name: count for name, count in counts.items() if count and name not in _REGULAR}


def _total(count: float | Mapping[str, int]) -> float:
    return sum(count.values()) if isinstance(count, Mapping) else count


class Ledger:
    """The counts behind a `RolloutTally`.

    Example:
        >>> ledger = Ledger()
        >>> ledger.add("started", 2)
        >>> ledger.stalled["tool search"] += 1
        >>> ledger.snapshot().started, ledger.snapshot().stalled
        (2, {'tool search': 1})
    """

    def __init__(self) -> None:
        self._counts: dict[str, float] = {}
        self.stalled: Counter[str] = Counter()
        """What trajectories were waiting for when they were ended."""

    def add(self, name: str, count: float = 1) -> None:
        """Count something under a field of `RolloutTally`."""
        self._counts[name] = self._counts.get(name, 0) + count

    def snapshot(self) -> RolloutTally:
        """Return the counts as they are."""
        # The fields that are whole numbers are only ever given whole numbers.
        return RolloutTally(**self._counts, stalled=dict(self.stalled))  # type: ignore[arg-type]
