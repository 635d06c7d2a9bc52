"""Rollouts: CPU per turn, makespan against the ideal, memory, faults, prefix caches, and groups stopped in flight."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import rollouts_faults
import rollouts_makespan
import rollouts_memory
import rollouts_overhead
import rollouts_prefix
import rollouts_requests
import rollouts_stopping
import rollouts_transport
from rich.console import Console

from icrl.collector import relax_collector
from icrl.config import load

Part = Literal["overhead", "requests", "transport", "makespan", "memory", "faults", "prefix", "stopping"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollouts:
    """CPU per turn, makespan, memory, faults, prefix caches and groups stopped in flight."""

    parts: tuple[Part, ...] = (
        "overhead",
        "requests",
        "transport",
        "makespan",
        "memory",
        "faults",
        "prefix",
        "stopping",
    )
    """What to measure."""
    quick: bool = False
    """Measure less, in a minute or two: figures are rough."""
    json: Path | None = None
    """Also write everything as JSON to this file."""
    plots: Path | None = None
    """Also draw what can be drawn into this directory."""
    overhead: rollouts_overhead.Overhead = field(default_factory=rollouts_overhead.Overhead)
    """Client CPU per turn."""
    requests: rollouts_requests.Requests = field(default_factory=rollouts_requests.Requests)
    """Client CPU per request, of the engine alone."""
    transport: rollouts_transport.Transport = field(default_factory=rollouts_transport.Transport)
    """Client CPU per request, of HTTP alone."""
    makespan: rollouts_makespan.Makespan = field(default_factory=rollouts_makespan.Makespan)
    """Makespan over the ideal with heavy-tailed tools."""
    memory: rollouts_memory.Memory = field(default_factory=rollouts_memory.Memory)
    """Memory per trajectory in flight."""
    faults: rollouts_faults.Faulty = field(default_factory=rollouts_faults.Faulty)
    """Faults of engines and tools."""
    prefix: rollouts_prefix.Prefix = field(default_factory=rollouts_prefix.Prefix)
    """Prefix-cache hits by placement."""
    stopping: rollouts_stopping.Stopping = field(default_factory=rollouts_stopping.Stopping)
    """Groups stopped in flight."""


QUICK: Mapping[Part, Mapping[str, Any]] = {
    "overhead": {"trajectories": 64, "repeats": 3},
    "requests": {"requests": 64, "repeats": 3},
    "transport": {"requests": 1024, "repeats": 3},
    "makespan": {"trajectories": (64,), "scale": 0.1},
    "memory": {"trajectories": 512},
    "faults": {"engine": ("none", "error_500", "killed", "interrupted"), "tools": ("none", "raises")},
    "prefix": {"groups": 16},
    "stopping": {"groups": 40, "epsilons": (0.05, 0.2), "mixtures": ("1,1",)},
}
MODULES: Mapping[Part, ModuleType] = {
    "overhead": rollouts_overhead,
    "requests": rollouts_requests,
    "transport": rollouts_transport,
    "makespan": rollouts_makespan,
    "memory": rollouts_memory,
    "faults": rollouts_faults,
    "prefix": rollouts_prefix,
    "stopping": rollouts_stopping,
}


def main(argv: Sequence[str]) -> None:
    options = load(Rollouts, argv, prog="benchmarks/run.py rollouts", description=str(Rollouts.__doc__))
    relax_collector()  # as `icrl train` does
    logging.getLogger("icrl").setLevel(logging.ERROR)  # servers die on purpose
    console = Console(width=160)
    found: dict[str, list[dict[str, Any]]] = {}
    for part in options.parts:
        settings = getattr(options, part)
        found[part] = MODULES[part].measure(replace(settings, **QUICK[part]) if options.quick else settings)
        console.print(MODULES[part].table(found[part]))
        _keep(options, found)


def _keep(options: Rollouts, found: Mapping[str, list[dict[str, Any]]]) -> None:
    """Write what there is so far: a long benchmark may be interrupted."""
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if options.plots is not None:
        options.plots.mkdir(parents=True, exist_ok=True)
        for part, rows in found.items():
            draw: Callable[[Sequence[Mapping[str, Any]], Any], None] | None = getattr(MODULES[part], "draw_plot", None)
            if draw is not None:
                _draw(draw, rows, options.plots / f"rollouts-{part}.png")


def _draw(draw: Callable[[Sequence[Mapping[str, Any]], Any], None], rows: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    draw(rows, axes)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
