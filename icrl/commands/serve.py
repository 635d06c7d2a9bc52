"""`icrl serve [MODEL]`: the loop behind OpenAI's protocols and a page."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from icrl.commands.shots import take_shots
from icrl.config import load
from icrl.imports import require
from icrl.runtime.agent import Agent
from icrl.serve.config import ServeConfig

__all__ = ["main"]


def main(argv: Sequence[str]) -> None:
    """Serve until a signal ends it."""
    config = load(ServeConfig, argv, prog="icrl serve", description="Serve a model with its tools.")
    require("prometheus_client", extra="serve")
    from icrl.serve.backlog import LineHandler, LineWriter
    from icrl.serve.server import run_until_signalled

    demonstrations = take_shots(config.demos, config.shots)

    def open_agent() -> Agent:
        return Agent(
            config.model,
            tokenizer=config.tokenizer,
            tools=config.tools,
            index=config.index,
            demonstrations=demonstrations,
            limits=config.limits.over,
        )

    lines = LineWriter()
    handler = LineHandler(lines)
    logging.getLogger().addHandler(handler)
    try:
        asyncio.run(run_until_signalled(config, open_agent, lines))
    finally:
        logging.getLogger().removeHandler(handler)
        lines.close()
