"""What icrl costs before it does anything: imports, help, installed size; and the shape of its code."""

from __future__ import annotations

import ast
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from icrl.config import load

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """Import time, help time, package size, and lengths of files and functions."""

    repeats: int = 7
    """Measurements of each time; the median is printed."""


def main(argv: Sequence[str]) -> None:
    options = load(Footprint, argv, prog="benchmarks/run.py footprint", description=str(Footprint.__doc__))
    table = Table(title="footprint")
    table.add_column("measure")
    table.add_column("value", justify="right")
    for name, value in [*times(options.repeats), *sizes(), *style()]:
        table.add_row(name, value)
    Console().print(table)


def times(repeats: int) -> list[tuple[str, str]]:
    commands = {
        "python -c pass": ["-c", "pass"],
        "import icrl": ["-c", "import icrl"],
        "import icrl; icrl.Agent": ["-c", "import icrl; icrl.Agent"],
        "icrl --help": ["-m", "icrl", "--help"],
        "icrl train --help": ["-m", "icrl", "train", "--help"],
    }
    return [(name, f"{median_ms(arguments, repeats):.0f} ms") for name, arguments in commands.items()]


def median_ms(arguments: list[str], repeats: int) -> float:
    def once() -> float:
        started = time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
        return (time.perf_counter() - started) * 1000

    once()
    return statistics.median(once() for _ in range(repeats))


def sizes() -> list[tuple[str, str]]:
    files = [p for p in (ROOT / "icrl").rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    package = sum(p.stat().st_size for p in files) / 1e6
    heavy = ("torch", "transformers", "sglang", "numpy", "numba", "trl")
    code = f"import icrl, sys; print([m for m in {heavy!r} if m in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()
    return [("package, MB", f"{package:.2f}"), ("heavy modules after import icrl", loaded)]


def style() -> list[tuple[str, str]]:
    files = sorted((ROOT / "icrl").rglob("*.py"))
    lengths = [len(p.read_text().splitlines()) for p in files]
    functions = sorted(
        node.end_lineno - node.lineno + 1
        for p in files
        for node in ast.walk(ast.parse(p.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    tests = sum(len(p.read_text().splitlines()) for p in (ROOT / "tests").rglob("*.py"))
    return [
        ("files", str(len(files))),
        ("lines", str(sum(lengths))),
        ("median and longest file", f"{statistics.median(lengths):.0f}, {max(lengths)}"),
        ("functions", str(len(functions))),
        (
            "median, 90th percentile, longest function",
            f"{statistics.median(functions):.0f}, {functions[int(len(functions) * 0.9)]}, {functions[-1]}",
        ),
        ("test lines a code line", f"{tests / sum(lengths):.2f}"),
    ]
