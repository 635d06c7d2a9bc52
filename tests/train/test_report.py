"""The report: figures, page and picture from the files of a run."""

from __future__ import annotations

import json
import struct
from dataclasses import replace

import pytest

from icrl.errors import ConfigError, DataError, MissingExtraError
from icrl.train.curve import plot_curve
from icrl.train.metrics import Evaluation, EvaluationLog, EvaluationPoint, MetricsLog, StepMetrics
from icrl.train.page import page
from icrl.train.report import RunFacts, write_report
from icrl.train.summary import summarize
from icrl.trajectory import Segment, StopReason, Trajectory
from icrl.types import Task

FACTS = RunFacts(seed=3, schedule="3:4,0:2", startup_s=2.0, next_commands=("icrl run 'q' --model runs/x",))


def steps(*shots: float) -> tuple[StepMetrics, ...]:
    return tuple(
        StepMetrics(
            step=i,
            stage=int(s == 0),
            shots=s,
            reward=i / 10,
            components={"em": i / 10},
            valid_call_rate=0.5,
            generate_s=1.0,
            tool_s=0.25,
            update_s=0.5,
            sampled_tokens=100,
        )
        for i, s in enumerate(shots, start=1)
    )


def point(step: int, em: float, shots: int = 0) -> EvaluationPoint:
    return EvaluationPoint(
        step=step,
        evaluation=Evaluation(
            tasks=40,
            samples=1,
            shots=shots,
            em=em,
            em_interval=(em / 2, (1 + em) / 2),
            f1=em,
            f1_interval=(em, em),
            format_rate=0.75,
            valid_call_rate=0.5,
            calls=1.0,
            response_tokens=20.0,
            errors=0,
            wall_s=1.0,
        ),
    )


STEPS = steps(3, 3, 3, 0, 0)
POINTS = (point(0, 0.0), point(3, 0.5), point(5, 0.9))


@pytest.fixture
def run(tmp_path):
    with MetricsLog(tmp_path / "metrics.jsonl") as log:
        for metrics in STEPS:
            log.append(metrics)
    with EvaluationLog(tmp_path / "evaluations.jsonl") as log:
        for evaluated in (*POINTS, point(5, 1.0, shots=3)):
            log.append(evaluated)
    (tmp_path / "config.yaml").write_text("seed: 3\n")
    return tmp_path


def size(path) -> tuple[int, int]:
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", data[16:24])


def test_a_run_directory_gets_picture_page_and_figures(run):
    report = write_report(run, FACTS)
    figures = json.loads((run / "report.json").read_text())
    assert figures["zero_shot_em_before"] == 0.0
    assert figures["zero_shot_em"] == 0.9
    assert figures["zero_shot_em_interval"] == [0.45, 0.95]
    assert (figures["format_rate"], figures["valid_call_rate"]) == (0.75, 0.5)
    assert (figures["steps"], figures["seed"], figures["schedule"]) == (5, 3, "3:4,0:2")
    assert figures["stage_steps"] == [3, 2]
    assert figures["wall_s"] == report.wall_s > 0
    assert "python" in figures["versions"]
    assert min(size(run / "curve.png")) > 500
    text = (run / "report.md").read_text()
    for expected in (
        "# Training run, seed 3",
        "![learning curve](curve.png)",
        "## Zero-shot, 40 held-out tasks",
        "| exact match before | 0.000 | 0.000 – 0.500 |",
        "| exact match after | 0.900 | 0.450 – 0.950 |",
        "| 1 | 3 | 1–3 | 0.200 | 0.200 | 0.50 | 0 | 4.5 |",
        "| 2 | 0 | 4–5 | 0.450 | 0.450 | 0.50 | 0 | 3.0 |",
        "Tools took 1.2 s",
        "icrl run 'q' --model runs/x",
        "```yaml\nseed: 3\n```",
    ):
        assert expected in text


def test_exact_match_of_several_worlds_is_told_apart():
    parts = {"code": 0.875, "search": 0.925}
    last = replace(POINTS[2], evaluation=replace(POINTS[2].evaluation, em_by_world=parts))
    report = summarize(STEPS, (*POINTS[:2], last), FACTS, wall_s=20.0)
    assert report.zero_shot_em_by_world == parts
    text = page(report, STEPS, FACTS, settings="")
    assert "| exact match after, code | 0.875 |  |\n| exact match after, search | 0.925 |  |" in text


def test_the_parts_of_the_time_sum_to_the_whole():
    report = summarize(STEPS, POINTS, FACTS, wall_s=20.0)
    assert report.times_s == {"start-up": 2.0, "rollouts": 5.0, "updates": 2.5, "evaluations": 3.0, "other": 7.5}
    assert report.tool_s == 1.25
    assert report.sampled_tokens == 500


def test_a_resumed_run_counts_all_steps_but_only_its_own_time():
    facts = RunFacts(seed=3, schedule="3:4,0:2", startup_s=2.0, resumed_at=3)
    report = summarize(STEPS, POINTS, facts, wall_s=20.0)
    assert report.times_s == {"start-up": 2.0, "rollouts": 2.0, "updates": 1.0, "evaluations": 1.0, "other": 14.0}
    assert (report.steps, report.zero_shot_em_before) == (5, 0.0)
    assert "resumed after step 3" in page(report, STEPS, facts, settings="")


def test_a_run_without_steps_and_evaluations_says_so(run):
    for name in ("metrics.jsonl", "evaluations.jsonl"):
        (run / name).unlink()
    report = write_report(run, RunFacts(seed=0, schedule="3:4", startup_s=1.0, finished=False))
    assert (report.steps, report.zero_shot_em, report.zero_shot_em_interval) == (0, None, None)
    text = (run / "report.md").read_text()
    assert "The model was not evaluated." in text
    assert "interrupted before its end" in text
    assert "## Stages" not in text


def test_only_the_first_evaluation_is_not_taken_for_the_result():
    report = summarize((), POINTS[:1], FACTS, wall_s=3.0)
    assert (report.zero_shot_em_before, report.zero_shot_em) == (0.0, None)


def test_samples_and_warnings_are_shown_and_cannot_break_the_page():
    forged = "```\n# not a heading\n````"
    reply = Segment(source="policy", role="text", ids=(1,), logprobs=(-0.1,), text=forged)
    sample = Trajectory(
        id="t",
        task=Task(query="Who?", answers=("A", "B")),
        segments=(reply,),
        stop_reason=StopReason.MAX_TOKENS,
    )
    facts = RunFacts(seed=0, schedule="0:1", startup_s=0.0, samples=(sample,), warnings=("flat reward",))
    text = page(summarize((), (), facts, wall_s=1.0), (), facts, settings="")
    assert "**Who?** (expected: A, B; answered: nothing; max_tokens)" in text
    assert f"`````\n{forged}\n`````" in text
    assert "## Warnings\n\n- flat reward" in text


@pytest.mark.parametrize(
    ("metrics", "points"),
    [
        ((), ()),
        (steps(3), ()),
        ((), POINTS),
        (steps(*[3] * 40, 2.25, 0), POINTS),
        ((StepMetrics(step=1, shots=9.0, reward=-4.0), StepMetrics(step=2, shots=0.0, reward=7.0)), ()),
    ],
)
def test_a_curve_can_be_drawn_of_any_run(tmp_path, metrics, points):
    plot_curve(metrics, points, tmp_path / "curve.png", title="run")
    assert min(size(tmp_path / "curve.png")) > 500


@pytest.mark.parametrize("name", ["curve.png", "report.md", "report.json", "config.yaml"])
def test_a_file_that_cannot_be_written_or_read_is_named(run, name):
    (run / name).unlink(missing_ok=True)
    (run / name).mkdir()
    with pytest.raises(ConfigError, match=rf"{name}: cannot (write|read) .*: Is a directory"):
        write_report(run, FACTS)


def test_a_damaged_log_is_named(run):
    (run / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(DataError, match=r"metrics\.jsonl:1: StepMetrics"):
        write_report(run, FACTS)


def test_without_matplotlib_the_extra_is_named(run, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"icrl\[train\]"):
        write_report(run, FACTS)
