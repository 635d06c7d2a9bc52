"""What tools cost: the sandbox by profile and layer, search engines on one corpus, and the tool runtime per call."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import tools_runtime
import tools_sandbox
import tools_search
from rich.console import Console

from icrl.config import load

Part = Literal["sandbox", "search", "runtime"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolsBench:
    """Cost of the sandbox, of search, and of the tool runtime."""

    parts: tuple[Part, ...] = ("sandbox", "search", "runtime")
    """What to measure."""
    search: tools_search.SearchBench = field(default_factory=tools_search.SearchBench)
    """The search part: `--search.documents 1000000 --search.engines icrl tantivy` takes many minutes."""
    output: Path | None = None
    """Also write everything as JSON to this file."""


def main(argv: Sequence[str]) -> None:
    options = load(ToolsBench, argv, prog="benchmarks/run.py tools", description=str(ToolsBench.__doc__))
    console = Console(width=120)
    found: dict[str, Any] = {}
    for part in options.parts:
        found[part] = PARTS[part](options, console)
    if options.output is not None:
        options.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def _sandbox(options: ToolsBench, console: Console) -> Any:
    found = tools_sandbox.measure()
    for table in tools_sandbox.tables(found):
        console.print(table)
    return found


def _search(options: ToolsBench, console: Console) -> Any:
    found = {}
    for documents in options.search.documents:
        found[str(documents)] = tools_search.measure(documents, options.search)
        console.print(tools_search.show(documents, found[str(documents)]))
    return found


def _runtime(options: ToolsBench, console: Console) -> Any:
    found = tools_runtime.measure()
    for table in tools_runtime.tables(found):
        console.print(table)
    return found


PARTS = {"sandbox": _sandbox, "search": _search, "runtime": _runtime}
