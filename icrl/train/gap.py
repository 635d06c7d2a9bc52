"""How far the engine's log-probabilities are from the trainer's, on tokens where they have to be the same.

They have to be where a token and everything before it were computed under the trainer's very weights. Any difference is
that of the arithmetic then, or a mistake: other weights, another precision, another temperature.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from icrl.errors import WeightSyncError
from icrl.trajectory import Trajectory, VersionSpan

if TYPE_CHECKING:
    import torch

    from icrl.train.metrics import StepMetrics

__all__ = ["Gap", "GapWatch", "exact_spans"]

UNWATCHED = 20
"""Steps in a row with nothing to compare, after which that is said."""


def exact_spans(trajectory: Trajectory, begun_under: int | None = None) -> tuple[VersionSpan, ...]:
    """Find the tokens that were sampled, with their whole prefix, under one known weight version.

    That is decided for each generation (one request to the engine). It counts if all of its tokens are of one version
    and it was sent when that version was in place: an engine then computes its prefix under the same weights, as
    nothing that it has cached of older ones may be used. It was sent so late if the generation before it in the same
    trajectory had ended under that version, or, for the first one, if the trajectory was begun under it.

    Left out, though some of it may be exact, are generations during which the weights changed; the first one after a
    change, even if all of its tokens are new: it may have waited in the server's queue while weights changed in place,
    and be continued from keys and values of the old ones; and first generations of trajectories of which it is not
    known under what they were begun, such as those that waited for a slot while the weights changed.

    Args:
        trajectory: Any.
        begun_under: Version that the engine had before the trajectory was begun; `None` if that is not known.

    Returns:
        Spans of the trajectory's tokens, in order.

    Example:
        >>> from icrl.trajectory import Segment, StopReason
        >>> from icrl.types import Task
        >>> def said(version):
        ...     span = VersionSpan(version=version, start=0, end=1)
        ...     return Segment(source="policy", role="text", ids=(5,), logprobs=(-0.5,), versions=(span,))
        >>> trajectory = Trajectory(id="", task=Task(query="?"), segments=(said(6), said(7), said(7)),
        ...                         stop_reason=StopReason.ANSWER)
        >>> [(span.version, span.start) for span in exact_spans(trajectory)]
        [(7, 2)]
    """
    spans: list[VersionSpan] = []
    before, start = begun_under, 0
    for segment in trajectory.segments:
        end = start + len(segment.ids)
        if segment.versions:
            if {span.version for span in segment.versions} == {before}:
                spans.append(VersionSpan(version=segment.versions[0].version, start=start, end=end))
            before = segment.versions[-1].version
        start = end
    return tuple(spans)


class Gap:
    """Sums of what the trainer found in one step.

    Example:
        >>> import torch
        >>> gap = Gap()
        >>> gap.add(torch.tensor([0.0, 0.5]), torch.tensor([0.5]))
        >>> found = Gap.values([gap.sums()])
        >>> found["logprob_gap"], found["logprob_gap_tokens"]
        (0.5, 1.0)
    """

    def __init__(self) -> None:
        self._sums = [0.0] * 5

    def add(self, differences_N: torch.Tensor, exact_M: torch.Tensor) -> None:
        """Add trained tokens.

        Args:
            differences_N: [N] trainer's log-probability less the engine's, of every token.
            exact_M: [M] the same, of those alone where it has to be 0.
        """
        gaps_M = exact_M.abs()
        added = (differences_N.exp().sum().item(), len(differences_N), gaps_M.sum().item(), len(gaps_M))
        largest = max(self._sums[4], gaps_M.max().item() if len(gaps_M) else 0.0)
        self._sums = [*(a + b for a, b in zip(self._sums, added, strict=False)), largest]

    def sums(self) -> list[float]:
        """Return what was added, for `values`, and begin anew."""
        sums, self._sums = self._sums, [0.0] * 5
        return sums

    @staticmethod
    def values(sums: Sequence[Sequence[float]]) -> dict[str, float]:
        """Return the step's metrics.

        Args:
            sums: Of every process.
        """
        ratios, tokens, gaps, exact, _ = (math.fsum(column) for column in zip(*sums, strict=True))
        found = {"ratio_mean": ratios / tokens} if tokens else {}
        if exact:
            found |= {"logprob_gap": max(row[4] for row in sums), "logprob_gap_mean": gaps / exact}
        return found | {"logprob_gap_tokens": exact}


class GapWatch:
    """Stops a run whose engine samples from something else than the trainer learns on.

    Args:
        bound: Largest mean gap; `None` only measures.
        warn: Hears, once, that there has been nothing to compare for long.
    """

    def __init__(self, bound: float | None, warn: Callable[[str], None]) -> None:
        self._bound = bound
        self._warn = warn
        self._unwatched = 0

    def look(self, measured: StepMetrics) -> None:
        """Look at a completed step.

        Raises:
            WeightSyncError: The mean gap is above the bound.
        """
        gap, bound = measured.logprob_gap_mean, self._bound
        if bound is None:
            return
        if gap is not None and not gap <= bound:  # nor may it be no number
            raise WeightSyncError(
                f"step {measured.step}: the engine's log-probabilities differ from the trainer's by {gap:.3g} nats a "
                f"token (largest {measured.logprob_gap or 0:.3g}, of {measured.logprob_gap_tokens} tokens), more than "
                f"sync.max_logprob_gap = {bound}. It may hold other weights, another precision, or another "
                "temperature; compare engine_dtype and precision"
            )
        self._note(measured)

    def _note(self, measured: StepMetrics) -> None:
        if self._unwatched >= UNWATCHED or measured.ratio_mean is None:  # it was said, or nothing was trained
            return
        self._unwatched = 0 if measured.logprob_gap_tokens else self._unwatched + 1
        if self._unwatched == UNWATCHED:
            self._warn(
                f"sync.max_logprob_gap: in the last {UNWATCHED} steps no token was sampled under the trainer's very "
                "weights, so that there is nothing to compare; rollouts end before the weights change. A step with "
                "rollout.staleness = 0 now and then (restart with --resume) would show whether the engine is right"
            )
