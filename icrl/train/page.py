"""`report.md`: a run on one page."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

from icrl.train.metrics import StepMetrics
from icrl.train.statistics import mean
from icrl.train.summary import Report, RunFacts
from icrl.trajectory import Trajectory

__all__ = ["page"]

_TAIL = 5
"""Steps at the end of a stage that its figures are averaged over."""


def page(report: Report, metrics: Sequence[StepMetrics], facts: RunFacts, *, settings: str) -> str:
    """Write a run's report as Markdown.

    Args:
        report: Its figures.
        metrics: Its steps.
        facts: Samples, warnings and what to type next.
        settings: The resolved configuration, as YAML.
    """
    sections = (
        _headline(report),
        "![learning curve](curve.png)",
        _before_after(report),
        _list("Warnings", facts.warnings),
        _stages(metrics),
        _times(report, metrics),
        _samples(facts.samples),
        "## Next\n\n" + _fence("\n".join(facts.next_commands), "bash") if facts.next_commands else "",
        "## Settings\n\n" + _fence(settings.strip(), "yaml"),
        "## Versions\n\n" + ", ".join(f"{name} {version}" for name, version in report.versions.items()),
    )
    return "\n\n".join(section for section in sections if section) + "\n"


def _headline(report: Report) -> str:
    state = "" if report.finished else " The curriculum was interrupted before its end."
    since = f" (resumed after step {report.resumed_at}; times are since then)" if report.resumed_at else ""
    return (
        f"# Training run, seed {report.seed}\n\n"
        f"{report.steps} steps of schedule `{report.schedule}` in {report.wall_s:.1f} s{since}.{state}"
    )


def _before_after(report: Report) -> str:
    rows = [
        ("exact match before", report.zero_shot_em_before, report.zero_shot_em_before_interval),
        ("exact match after", report.zero_shot_em, report.zero_shot_em_interval),
        *((f"exact match after, {world}", em, None) for world, em in report.zero_shot_em_by_world.items()),
        ("F1 after", report.zero_shot_f1, None),
        ("whole-form rate after", report.format_rate, None),
        ("valid-call rate after", report.valid_call_rate, None),
    ]
    cells = [(name, f"{v:.3f}", f"{i[0]:.3f} – {i[1]:.3f}" if i else "") for name, v, i in rows if v is not None]
    if not cells:
        return "The model was not evaluated."
    title = f"## Zero-shot, {report.held_out_tasks} held-out tasks" if report.held_out_tasks else "## Zero-shot"
    return f"{title}\n\n" + _table(("measure", "value", "95 % interval"), cells)


def _stages(metrics: Sequence[StepMetrics]) -> str:
    rows = []
    for stage, group in itertools.groupby(metrics, key=lambda m: m.stage):
        steps = list(group)
        tail = steps[-_TAIL:]
        rows.append(
            (
                str(stage + 1),
                f"{mean([m.shots for m in steps]):.2g}",
                f"{steps[0].step}–{steps[-1].step}",
                f"{mean([m.reward for m in tail]):.3f}",
                "" if tail[-1].em is None else f"{mean([m.em or 0.0 for m in tail]):.3f}",
                f"{mean([m.valid_call_rate for m in tail]):.2f}",
                f"{mean([m.response_tokens for m in tail]):.0f}",
                f"{sum(m.step_s for m in steps):.1f}",
            )
        )
    head = ("stage", "shots", "steps", "reward", "exact match", "valid calls", "response tokens", "seconds")
    note = f"Reward to response tokens are means over the last {_TAIL} steps of the stage."
    return f"## Stages\n\n{_table(head, rows)}\n\n{note}" if rows else ""


def _times(report: Report, metrics: Sequence[StepMetrics]) -> str:
    whole = report.wall_s or 1.0
    rows = [(name, f"{seconds:.1f}", f"{seconds / whole:.0%}") for name, seconds in report.times_s.items()]
    rows.append(("**all**", f"{report.wall_s:.1f}", ""))
    note = f"Tools took {report.tool_s:.1f} s within the rollouts, summed over concurrent calls."
    if used := [(m.engine.busy, m.step_s + m.sync_s) for m in metrics if m.engine is not None]:
        busy = sum(share * seconds for share, seconds in used) / (sum(seconds for _, seconds in used) or 1.0)
        note += f" The engine had requests of the run for {busy:.0%} of the time of its steps."
    return "## Where the time went\n\n" + _table(("part", "seconds", "share"), rows) + f"\n\n{note}"


def _samples(trajectories: Sequence[Trajectory]) -> str:
    if not trajectories:
        return ""
    shown = [
        f"**{t.task.messages[-1].content}** (expected: {', '.join(t.task.answers) or 'unknown'}; "
        f"answered: {t.answer if t.answer is not None else 'nothing'}; {t.stop_reason.value})\n\n"
        + _fence(t.response_text.strip())
        for t in trajectories
    ]
    return "## Sample trajectories\n\n" + "\n\n".join(shown)


def _list(title: str, items: Sequence[str]) -> str:
    return f"## {title}\n\n" + "\n".join(f"- {item}" for item in items) if items else ""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _fence(text: str, language: str = "") -> str:
    """Quote text that may itself contain fences, as a model's output may."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"
