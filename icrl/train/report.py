"""What a run leaves behind for people and programs: `curve.png`, `report.md` and `report.json`."""

from __future__ import annotations

from pathlib import Path

import msgspec

from icrl.errors import ConfigError
from icrl.train.clock import process_age_s
from icrl.train.curve import plot_curve
from icrl.train.metrics import EvaluationLog, MetricsLog
from icrl.train.page import page
from icrl.train.summary import Report, RunFacts, summarize
from icrl.wire import encode

__all__ = ["Report", "RunFacts", "write_report"]


def write_report(directory: Path, facts: RunFacts) -> Report:
    """Write `curve.png`, `report.md` and `report.json` from `metrics.jsonl`, `evaluations.jsonl` and `config.yaml`.

    Args:
        directory: The run directory.
        facts: What its files do not say.

    Returns:
        What `report.json` holds.

    Raises:
        ConfigError: The directory cannot be written.
        DataError: A log is damaged.
        MissingExtraError: matplotlib is absent.
    """
    metrics = MetricsLog.load(directory / "metrics.jsonl")
    points = EvaluationLog.load(directory / "evaluations.jsonl")
    zero_shot = tuple(point for point in points if point.evaluation.shots == 0)
    plot_curve(metrics, zero_shot, directory / "curve.png", title=f"Curriculum {facts.schedule}, seed {facts.seed}")
    # Summed up after the picture, which takes a second itself.
    report = summarize(metrics, zero_shot, facts, wall_s=process_age_s())
    _write(directory / "report.md", page(report, metrics, facts, settings=_settings(directory / "config.yaml")))
    _write(directory / "report.json", msgspec.json.format(encode(report), indent=2).decode() + "\n")
    return report


def _settings(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the settings: {error.strerror}") from error


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot write the report: {error.strerror}") from error
