"""`python -m icrl.train`: train a model to use tools, evaluate it, and say what came of it."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from icrl.collector import relax_collector
from icrl.config import dump, load
from icrl.errors import ConfigError
from icrl.imports import require
from icrl.runtime.model import find_model
from icrl.train.config import TrainConfig
from icrl.train.data import Data, load_data

if TYPE_CHECKING:
    from icrl.train.ranks import Ranks
    from icrl.train.summary import Report

__all__ = ["main"]

NEEDED = ("torch", "transformers", "trl", "accelerate", "datasets", "numba")


def main(argv: Sequence[str]) -> None:
    """Train.

    Raises:
        ConfigError: A setting is wrong.
        MissingExtraError: The training extra is not installed.
        KeyboardInterrupt: Ctrl-C ended the run; what was trained is saved.
    """
    config = load(TrainConfig, argv, prog="python -m icrl.train", description="Train a model to use tools.")
    if config.resume is not None:
        config = _resumed(config, argv)
    if config.dry_run:
        dump(config, Path("/dev/stdout"))
        return
    require(*NEEDED, extra="train")
    relax_collector()
    # Whatever can be wrong with the input is found before anything is written.
    find_model(config.model)
    data = load_data(config)
    _train_together(config, data)


def _train_together(config: TrainConfig, data: Data) -> None:
    """Lead, or follow whoever leads."""
    from icrl.train.ranks import Ranks

    ranks = Ranks.from_environment()
    if ranks.leads:
        directory = _prepare(config)
        ranks.tell("directory", directory)
        _train(config, directory, data, ranks)
        return
    from icrl.train.following import follow

    _, directory = ranks.hear()
    follow(config, directory, ranks)


def _resumed(given: TrainConfig, argv: Sequence[str]) -> TrainConfig:
    """Take the settings of the run that is continued; nothing else may be said."""
    assert given.resume is not None
    if given != TrainConfig(resume=given.resume):
        raise ConfigError("resume: the settings come from the run's config.yaml; give --resume DIR alone")
    path = given.resume / "config.yaml"
    if not path.is_file():
        raise ConfigError(f"resume: {given.resume} is not a run directory (no config.yaml there)")
    stored = load(TrainConfig, ["--config", str(path)], prog="python -m icrl.train", description="")
    return replace(stored, resume=given.resume, output_dir=given.resume)


def _prepare(config: TrainConfig) -> Path:
    """Create the run directory and write its configuration."""
    directory = config.output_dir or Path("runs") / time.strftime("%Y-%m-%d_%H-%M-%S")
    if config.resume is not None:
        return directory
    if (directory / "config.yaml").exists():
        raise ConfigError(f"output_dir: {directory} holds a run already; continue it with --resume {directory}")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        dump(config, directory / "config.yaml")
    except OSError as error:
        raise ConfigError(f"output_dir: {directory} cannot be written ({error.strerror})") from error
    return directory


def _train(config: TrainConfig, directory: Path, data: Data, ranks: Ranks) -> None:
    from icrl.train.clock import process_age_s
    from icrl.train.curriculum import Stages
    from icrl.train.live import LiveView
    from icrl.train.report import write_report
    from icrl.train.session import open_session

    console = Console(stderr=True, highlight=False)
    console.print(f"writing to {directory}", soft_wrap=True)
    curriculum = Stages(
        config.schedule, promote_at=config.promote_at, finish_at=config.finish_at, window=config.promote_window
    )
    view = LiveView(curriculum, console=console)
    with open_session(config, directory, data, curriculum, view, ranks) as session:
        startup_s = process_age_s()
        with view:
            if session.checkpoint is None:
                session.evaluate(config.evaluation.tasks)
            finished = session.train()
            if finished:
                session.evaluate(config.evaluation.tasks)
                session.save_model()
        ranks.tell("done")
        facts = session.facts(
            startup_s=startup_s, finished=finished, next_commands=_next(config, directory, session.data, finished)
        )
    report = write_report(directory, facts)
    console.print(_summary(report, directory), soft_wrap=True)
    console.print(f"next: {facts.next_commands[0]}", soft_wrap=True)
    if not finished:
        raise KeyboardInterrupt


def _next(config: TrainConfig, directory: Path, data: Data, finished: bool) -> tuple[str, ...]:
    where = shlex.quote(str(directory))
    if not finished:
        return (f"python -m icrl.train --resume {where}",)
    question = shlex.quote(data.held_out[0].messages[-1].content)
    world = "" if config.world == "search" else f" --world {config.world}"
    return (f"icrl run --model {where} {question}", f"icrl eval {where}{world}")


def _summary(report: Report, directory: Path) -> str:
    if report.zero_shot_em is None or report.zero_shot_em_interval is None:
        return f"stopped after step {report.steps}; everything is in {directory}"
    low, high = report.zero_shot_em_interval
    before = "" if report.zero_shot_em_before is None else f"{report.zero_shot_em_before:.3f} → "
    return (
        f"zero-shot exact match {before}{report.zero_shot_em:.3f} [{low:.3f}, {high:.3f}] on {report.held_out_tasks} "
        f"held-out tasks, after {report.steps} steps and {report.wall_s:.0f} s; see {directory}/report.md"
    )


if __name__ == "__main__":
    from icrl.cli import main as cli

    sys.exit(cli(["train", *sys.argv[1:]]))
