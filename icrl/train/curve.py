"""The learning curve as a picture."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from icrl.errors import ConfigError, MissingExtraError
from icrl.train.metrics import EvaluationPoint, StepMetrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_curve"]

_LINES: tuple[tuple[str, str, str, float, Callable[[StepMetrics], float | None]], ...] = (
    ("exact match", "#1f6feb", "-", 2.4, lambda m: m.em),
    ("valid-call rate", "#d97706", "--", 1.5, lambda m: m.valid_call_rate),
    ("reward", "#1f2933", ":", 1.5, lambda m: m.reward),
)
_BANDS = ("#ffffff", "#edf3fa", "#dbe7f5", "#c8daef")
"""Background of 0, 1, 2 and 3 or more shots: the fewer demonstrations, the lighter."""
_LABEL_FRACTION = 0.05
"""Bands narrower than this part of the run have no room for a label."""


def plot_curve(
    metrics: Sequence[StepMetrics], evaluations: Sequence[EvaluationPoint], path: Path, *, title: str
) -> None:
    """Draw reward, exact match and valid-call rate by step, the curriculum as bands, and zero-shot evaluations.

    Args:
        metrics: Steps, in order.
        evaluations: Zero-shot evaluations, in order.
        path: PNG to write.
        title: Headline.

    Raises:
        ConfigError: The file cannot be written.
        MissingExtraError: matplotlib is absent.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", extra="train") from error

    # Without pyplot there is no global figure to leak and no display to look for.
    figure = Figure(figsize=(9, 4.8), dpi=140, layout="constrained")
    axes = figure.add_subplot()
    _bands(axes, metrics)
    _curves(axes, metrics)
    _points(axes, evaluations)
    _frame(axes, metrics, evaluations)
    figure.suptitle(title, fontsize=13, fontweight="bold", color="#1f2933")
    if handles := axes.get_legend_handles_labels()[0]:
        figure.legend(loc="outside lower center", ncols=len(handles), frameon=False, fontsize=10)
    try:
        figure.savefig(path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot write the curve: {error.strerror}") from error


def _bands(axes: Axes, metrics: Sequence[StepMetrics]) -> None:
    """Shade the background by shots; neighbouring steps with the same number share a band and its label."""
    stages = [(m.step, f"{m.shots:.2g}-shot", m.shots) for m in metrics]
    for label, group in itertools.groupby(stages, key=lambda stage: stage[1]):
        steps = list(group)
        left, right, shots = steps[0][0] - 0.5, steps[-1][0] + 0.5, steps[0][2]
        axes.axvspan(left, right, color=_BANDS[min(round(shots), len(_BANDS) - 1)], zorder=0, linewidth=0)
        axes.axvline(left, color="#9aa5b1", linewidth=0.8, zorder=1)
        if len(steps) >= _LABEL_FRACTION * len(stages):
            # Above the frame, so that no label lies on the data.
            centre = (steps[0][0] + steps[-1][0]) / 2
            place: dict[str, Any] = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
            axes.annotate(label, (centre, 1.0), (0, 4), ha="center", fontsize=9, color="#52606d", **place)


def _curves(axes: Axes, metrics: Sequence[StepMetrics]) -> None:
    for label, colour, style, width, value in _LINES:
        points = [(m.step, value(m)) for m in metrics if value(m) is not None]
        if points:
            axes.plot(*zip(*points, strict=True), style, color=colour, linewidth=width, label=label, zorder=3)


def _points(axes: Axes, evaluations: Sequence[EvaluationPoint]) -> None:
    if not evaluations:
        return
    steps = [point.step for point in evaluations]
    values = [point.evaluation.em for point in evaluations]
    ends = [point.evaluation.em_interval for point in evaluations]
    below = [max(0.0, value - low) for value, (low, _) in zip(values, ends, strict=True)]
    above = [max(0.0, high - value) for value, (_, high) in zip(values, ends, strict=True)]
    look: dict[str, Any] = {
        "color": "#15803d",
        "markersize": 7,
        "linewidth": 1.0,
        "linestyle": (0, (1, 2)),
        "capsize": 3,
        "zorder": 4,
    }
    axes.errorbar(
        steps, values, yerr=[below, above], marker="o", label="zero-shot exact match, held-out questions", **look
    )


def _frame(axes: Axes, metrics: Sequence[StepMetrics], evaluations: Sequence[EvaluationPoint]) -> None:
    from matplotlib.ticker import MaxNLocator

    steps = [m.step for m in metrics] + [point.step for point in evaluations] or [0]
    lowest = min([0.0, *(m.reward for m in metrics)])
    highest = max([1.0, *(m.reward for m in metrics)])
    margin = 0.04 * (highest - lowest)
    axes.set_xlim(min(steps) - 0.8, max(steps) + 0.8)
    axes.set_ylim(lowest - margin, highest + margin)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("training step")
    axes.set_ylabel("mean over the step")
    axes.grid(axis="y", color="#cbd2d9", linewidth=0.6, zorder=1)
    axes.spines[["top", "right"]].set_visible(False)
