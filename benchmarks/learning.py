"""The paper's argument in miniature, every arm with the same hyperparameters; whatever comes out is printed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from icrl.config import load
from icrl.train.metrics import EvaluationLog
from icrl.train.statistics import seeds_interval

ARMS = {
    "curriculum 3-2-1-0": (),
    "zero-shot RL": ("--schedule", "0:60", "--promote-at", "None"),
    "few-shot RL": ("--schedule", "3:60", "--promote-at", "None"),
    "aggressive 3-0": ("--schedule", "3:5,0:55", "--promote-at", "None"),
}
COLOURS = ("#1f6feb", "#b91c1c", "#d97706", "#7c3aed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Learning:
    """Train every arm on every seed and compare zero-shot exact match on the held-out questions."""

    world: str = "search"
    """Embedded world: `search`, `code` or `mixed`."""
    seeds: int = 3
    """Seeds 0, 1, … of each arm."""
    arms: int = len(ARMS)
    """How many arms, the curriculum first."""
    jobs: int = 1
    """Runs side by side; wall times are only meaningful with 1."""
    out: Path = Path("runs/learning")
    """Where runs, table and picture are written; finished runs there are not repeated."""


def main(argv: Sequence[str]) -> None:
    options = load(Learning, argv, prog="benchmarks/run.py learning", description=str(Learning.__doc__))
    runs = [(arm, seed) for arm in chosen(options) for seed in range(options.seeds)]
    console = Console(width=140)
    with ThreadPoolExecutor(options.jobs) as pool:
        reports = list(pool.map(lambda run: train(options, *run, console), runs))
    results = dict(zip(runs, reports, strict=True))
    tool_off = [without_tools(options, seed) for seed in range(options.seeds)]
    console.print(table(options, results))
    console.print(f"trained by curriculum, tool switched off: exact match {tool_off}")
    (options.out / options.world / "learning.json").write_text(
        json.dumps({"runs": {f"{a}/{s}": r for (a, s), r in results.items()}, "tool_off": tool_off}, indent=1)
    )
    plot(options, options.out / options.world / "learning.png")
    console.print(f"written to {options.out / options.world}: learning.json, learning.png, one directory a run")


def directory(options: Learning, arm: str, seed: int) -> Path:
    return options.out / options.world / f"{arm.split()[0]}-{seed}"


def chosen(options: Learning) -> list[str]:
    return list(ARMS)[: options.arms]


def train(options: Learning, arm: str, seed: int, console: Console) -> dict:
    where = directory(options, arm, seed)
    report = where / "report.json"
    if not report.exists():
        command = [sys.executable, "-m", "icrl.train", "--world", options.world, "--seed", str(seed)]
        command += ["--output-dir", str(where)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"} if options.jobs > 1 else None
        where.parent.mkdir(parents=True, exist_ok=True)
        with (where.parent / f"{where.name}.log").open("w") as log:
            subprocess.run([*command, *ARMS[arm]], check=True, stdout=log, stderr=log, env=environment)
    found = json.loads(report.read_text())
    result = f"{found['zero_shot_em']:.3f} after {found['steps']} steps, {found['wall_s']:.0f} s"
    parts = "".join(f", {world} {em:.3f}" for world, em in found["zero_shot_em_by_world"].items())
    console.print(f"{arm}, seed {seed}: {result}{parts}")
    return found


def without_tools(options: Learning, seed: int) -> float:
    run = directory(options, next(iter(ARMS)), seed)
    command = [sys.executable, "-m", "icrl", "eval", str(run), "--world", options.world, "--no-tools", "--json"]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)["em"]


def table(options: Learning, results: dict) -> Table:
    tasks = next(iter(results.values()))["held_out_tasks"]
    shown = Table(title=f"{options.world}: zero-shot exact match on {tasks} held-out questions, {options.seeds} seeds")
    for column in ("arm", "before", "after, by seed", "mean", "95 % interval over seeds", "format", "steps", "wall s"):
        shown.add_column(column)
    for arm in chosen(options):
        found = [results[arm, seed] for seed in range(options.seeds)]
        after = [f["zero_shot_em"] for f in found]
        low, high = seeds_interval(after)
        shown.add_row(
            arm,
            join(f["zero_shot_em_before"] for f in found),
            join(after),
            f"{sum(after) / len(after):.3f}",
            f"{max(0.0, low):.3f} - {min(1.0, high):.3f}",
            join(f["format_rate"] for f in found),
            " ".join(str(f["steps"]) for f in found),
            " ".join(f"{f['wall_s']:.0f}" for f in found),
        )
    return shown


def join(values: Iterable[float]) -> str:
    return " ".join(f"{value:.3f}" for value in values)


def plot(options: Learning, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.8), dpi=140, layout="constrained")
    axes = figure.add_subplot()
    for arm, colour in zip(chosen(options), COLOURS, strict=False):
        for seed in range(options.seeds):
            points = EvaluationLog.load(directory(options, arm, seed) / "evaluations.jsonl")
            steps, values = [p.step for p in points], [p.evaluation.em for p in points]
            axes.plot(
                steps,
                values,
                color=colour,
                marker="o",
                markersize=3,
                linewidth=1.4,
                alpha=0.8,
                label=arm if seed == 0 else None,
            )
    axes.set(
        xlabel="training step",
        ylabel="zero-shot exact match, held out",
        ylim=(-0.03, 1.03),
        title=f"Zero-shot exact match while training, {options.seeds} seeds an arm",
    )
    axes.grid(axis="y", color="#cbd2d9", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=options.arms, frameon=False)
    figure.savefig(path)
