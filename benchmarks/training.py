"""The same training with rollouts from three engines: in this process, from SGLang, and from SGLang while updating."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from icrl.config import load
from icrl.errors import ConfigError
from icrl.train.metrics import MetricsLog, StepMetrics
from icrl.train.statistics import mean

ARMS = {
    "local": (),
    "sglang": ("--engine", "sglang"),
    "overlap": ("--engine", "sglang", "--rollout.staleness", "1"),
    "local-overlap": ("--rollout.staleness", "1"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """Train the embedded model with rollouts from each engine; wall time, exact match and logprob gaps side by side."""

    arms: tuple[str, ...] = ("local", "sglang", "overlap")
    """`local`, `sglang`, `overlap` (SGLang, rollouts one update ahead), `local-overlap`."""
    seeds: int = 1
    """Seeds 0, 1, … of each arm."""
    schedule: str | None = None
    """Curriculum, if not the default."""
    out: Path = Path("runs/training")
    """Where runs, table and figures are written; finished runs there are not repeated."""

    def __post_init__(self) -> None:
        if unknown := set(self.arms) - ARMS.keys():
            raise ConfigError(f"arms: {unknown.pop()!r} is not one of {', '.join(ARMS)}")


def main(argv: Sequence[str]) -> None:
    options = load(Training, argv, prog="benchmarks/run.py training", description=str(Training.__doc__))
    console = Console(width=180)
    found = {(arm, seed): train(options, arm, seed, console) for seed in range(options.seeds) for arm in options.arms}
    console.print(table(found))
    (options.out / "training.json").write_text(json.dumps({f"{a}/{s}": f for (a, s), f in found.items()}, indent=1))
    console.print(f"written to {options.out}: training.json, one directory a run")


def train(options: Training, arm: str, seed: int, console: Console) -> dict:
    where = options.out / f"{arm}-{seed}"
    if not (where / "report.json").exists():
        command = [sys.executable, "-m", "icrl.train", "--seed", str(seed), "--output-dir", str(where), *ARMS[arm]]
        command += ["--schedule", options.schedule] if options.schedule else []
        where.parent.mkdir(parents=True, exist_ok=True)
        with (where.parent / f"{where.name}.log").open("w") as log:
            subprocess.run(command, check=True, stdout=log, stderr=log)
    report = json.loads((where / "report.json").read_text())
    figures = {
        **{name: report[name] for name in ("zero_shot_em_before", "zero_shot_em", "steps", "wall_s", "times_s")},
        **of_steps(MetricsLog.load(where / "metrics.jsonl")),
    }
    console.print(f"{arm}, seed {seed}: {figures['zero_shot_em']:.3f} after {figures['wall_s']:.0f} s")
    return figures


def of_steps(steps: Sequence[StepMetrics]) -> dict:
    """Summarise what only the step's own records say."""
    gaps = [m.logprob_gap for m in steps if m.logprob_gap is not None]
    means = [m.logprob_gap_mean for m in steps if m.logprob_gap_mean is not None]
    return {
        "waiting_s": sum(m.generate_s for m in steps),
        "update_s": sum(m.update_s for m in steps),
        "sync_s": sum(m.sync_s for m in steps),
        "step_s": mean([m.step_s + m.sync_s for m in steps]),
        "staleness": mean([m.staleness for m in steps]),
        **of_engine(steps),
        "max_logprob_gap": max(gaps, default=None),
        "mean_logprob_gap": mean(means) if means else None,
        "ratio_mean": [min(r), max(r)] if (r := [m.ratio_mean for m in steps if m.ratio_mean is not None]) else None,
    }


def of_engine(steps: Sequence[StepMetrics]) -> dict:
    """Average the engine's use over the time of the steps."""
    pairs = [(m.engine, m.step_s + m.sync_s) for m in steps if m.engine is not None]
    whole_s = sum(wall_s for _, wall_s in pairs)
    shown = {"engine_busy": "busy", "engine_requests": "requests", "engine_tokens_per_s": "tokens_per_s"}
    means = {n: sum(getattr(use, f) * s for use, s in pairs) / whole_s if pairs else None for n, f in shown.items()}
    hits = [use.cache_hit_rate for use, _ in pairs if use.cache_hit_rate is not None]
    return {**means, "cache_hit_rate": mean(hits) if hits else None}


def table(found: dict[tuple[str, int], dict]) -> Table:
    shown = Table(title="the embedded model, search world: rollouts from three engines")
    columns = ("engine", "seed", "EM before", "EM after", "steps", "wall s", "s a step", "waiting s", "updates s")
    for column in (*columns, "sync s", "staleness", "engine busy", "tokens/s", "cache hits", "gap mean", "gap max"):
        shown.add_column(column)
    for (arm, seed), f in found.items():
        shown.add_row(
            *(arm, str(seed), f"{f['zero_shot_em_before']:.3f}", f"{f['zero_shot_em']:.3f}", str(f["steps"])),
            *(f"{f[name]:.1f}" for name in ("wall_s", "step_s", "waiting_s", "update_s", "sync_s", "staleness")),
            *(_share(f["engine_busy"]), _number(f["engine_tokens_per_s"]), _share(f["cache_hit_rate"])),
            *("-" if f[name] is None else f"{f[name]:.1e}" for name in ("mean_logprob_gap", "max_logprob_gap")),
        )
    return shown


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"
