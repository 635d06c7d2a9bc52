"""Watching a run: a panel with curves on a terminal, one plain line a step anywhere else."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from icrl.train.curriculum import Curriculum
from icrl.train.metrics import Evaluation, StepMetrics

__all__ = ["LiveView", "sparkline"]

_BLOCKS = "▁▂▃▄▅▆▇█"
_WIDTH = 92
_BESIDE_CURVE = 32
"""Columns that frame, name and value take."""
_RECENT_STEPS = 5
"""Steps that the forecast of the remaining time is taken from."""


def sparkline(values: Sequence[float], width: int) -> str:
    """Draw values between 0 and 1 as blocks, averaged to at most `width` of them.

    Example:
        >>> sparkline([0.0, 0.5, 1.0], 10)
        '▁▅█'
    """
    count = min(width, len(values))
    edges = [round(i * len(values) / count) for i in range(count + 1)] if count else []
    means = [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    return "".join(_BLOCKS[round(min(1.0, max(0.0, mean)) * (len(_BLOCKS) - 1))] for mean in means)


class LiveView:
    """Shows a run while it lasts; use as a context manager.

    Args:
        curriculum: The run's curriculum, read for the steps that are left.
        console: Where to show it; a console that is no terminal gets plain lines.

    Example:
        >>> import sys
        >>> from icrl.train.curriculum import Stages
        >>> with LiveView(Stages("3:40,0:40"), console=Console(file=sys.stdout, width=120)) as view:
        ...     view.step(StepMetrics(step=1, shots=3.0, reward=0.5, components={"em": 0.5}, generate_s=1.5))
        step 1 | 3 shots | reward 0.500 | em 0.500 | valid calls 0.00 | 1.5 s
    """

    def __init__(self, curriculum: Curriculum, *, console: Console | None = None) -> None:
        self._curriculum = curriculum
        self._console = console or Console(stderr=True)
        self._live = Live(console=self._console, auto_refresh=False) if self._console.is_terminal else None
        self._width = min(self._console.width, _WIDTH)
        self._steps: list[StepMetrics] = []
        self._evaluation: tuple[int, Evaluation] | None = None

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def step(self, metrics: StepMetrics) -> None:
        """Show a completed step."""
        self._steps.append(metrics)
        if self._live is None:
            self._say(_plain_line(metrics))
        else:
            self._refresh()

    def evaluation(self, step: int, result: Evaluation) -> None:
        """Show an evaluation that was made after `step` steps."""
        self._evaluation = (step, result)
        self._say(f"after step {step}: {_evaluated(result)}")
        self._refresh()

    def warn(self, text: str) -> None:
        """Show something that deserves attention."""
        self._say(f"warning: {text}")

    def _say(self, line: str) -> None:
        # Above the panel, if there is one; never wrapped, so that a log file has one line a message.
        self._console.print(Text(line), soft_wrap=True)

    def _refresh(self) -> None:
        if self._live is not None and self._steps:
            self._live.update(self._panel(), refresh=True)

    def _panel(self) -> RenderableType:
        last = self._steps[-1]
        title = f"step {last.step} · stage {last.stage + 1} · {last.shots:.2g} shots"
        parts: list[RenderableType] = [self._curves(), Text(), self._rates(last)]
        if self._evaluation is not None:
            step, result = self._evaluation
            text = f"{result.shots}-shot exact match {result.em:.3f} on {result.tasks} held-out tasks after step {step}"
            parts.append(Text(text, style="green"))
        return Panel(Group(*parts), title=title, subtitle=self._forecast(), padding=(1, 2), width=self._width)

    def _curves(self) -> Table:
        curves = {"reward": [m.reward for m in self._steps], "valid calls": [m.valid_call_rate for m in self._steps]}
        if matches := [m.em for m in self._steps if m.em is not None]:
            curves = {"exact match": matches, **curves}
        table = Table.grid(padding=(0, 2))
        for (name, values), style in zip(curves.items(), ("bold cyan", "white", "yellow"), strict=False):
            table.add_row(
                name, Text(sparkline(values, max(1, self._width - _BESIDE_CURVE)), style=style), f"{values[-1]:.3f}"
            )
        return table

    def _rates(self, last: StepMetrics) -> Table:
        table = Table.grid(padding=(0, 2))
        parts = " ".join(f"{name} {value:.2f}" for name, value in last.components.items())
        table.add_row("parts", parts or "-", "calls", f"{last.calls_per_trajectory:.2f}")
        table.add_row(
            "response", f"{last.response_tokens:.0f} tokens", "informative", f"{last.informative_groups} groups"
        )
        table.add_row("rollout", f"{last.generate_s:.2f} s", "update", f"{last.update_s:.2f} s")
        table.add_row("speed", f"{last.tokens_per_s:,.0f} tokens/s", "loss", _number(last.loss))
        if last.engine is not None:
            hits = _share(last.engine.cache_hit_rate)
            table.add_row("engine", f"busy {last.engine.busy:.0%}", "cache hits", hits)
        return table

    def _forecast(self) -> str:
        recent = self._steps[-_RECENT_STEPS:]
        left_s = self._curriculum.steps_left * sum(m.step_s for m in recent) / len(recent)
        return f"at most {self._curriculum.steps_left} steps left, {_duration(left_s)}"


def _plain_line(metrics: StepMetrics) -> str:
    """Say in one line how a step went."""
    match = "" if metrics.em is None else f" | em {metrics.em:.3f}"
    busy = "" if metrics.engine is None else f" | engine busy {metrics.engine.busy:.2f}"
    return (
        f"step {metrics.step} | {metrics.shots:.2g} shots | reward {metrics.reward:.3f}{match}"
        f" | valid calls {metrics.valid_call_rate:.2f}{busy} | {metrics.step_s:.1f} s"
    )


def _evaluated(result: Evaluation) -> str:
    low, high = result.em_interval
    return (
        f"{result.shots}-shot exact match {result.em:.3f} [{low:.3f}, {high:.3f}] on {result.tasks} held-out tasks, "
        f"form {result.format_rate:.2f}, valid calls {result.valid_call_rate:.2f}"
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
