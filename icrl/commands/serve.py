"""`icrl serve [MODEL]`: the loop behind OpenAI's protocols and a page."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from rich.console import Console

from icrl.config import load
from icrl.imports import require
from icrl.serve.config import ServeConfig

__all__ = ["main"]


def main(argv: Sequence[str]) -> None:
    """Serve until a signal ends it."""
    config = load(ServeConfig, argv, prog="icrl serve", description="Serve a model with its tools.")
    require("prometheus_client", extra="serve")
    from icrl.serve.server import run_until_signalled

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    asyncio.run(run_until_signalled(config, console.print))
