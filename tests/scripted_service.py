"""`icrl serve` with an engine that says what the test wants: a process that tests send signals to.

It says `word0 word1 …`, a token at a time over `--latency` seconds; what a question holds behind `say:` it says
instead, once.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence

from icrl.config import load
from icrl.runtime.agent import Agent
from icrl.serve.backlog import LineWriter
from icrl.serve.config import ServeConfig
from icrl.serve.server import run_until_signalled
from icrl.testing import ByteTokenizer, ScriptedEngine

WORDS = " ".join(f"word{i}" for i in range(20))


def script(ids: Sequence[int]) -> str:
    text = ByteTokenizer().decode(ids)
    wanted = text.partition("say:")[2].partition("\n")[0].partition("<|im_end|>")[0].strip()
    return wanted if wanted and "<information>" not in text else f"<answer> {WORDS} </answer>"


def main() -> None:
    latency_s, *argv = sys.argv[1:]
    config = load(ServeConfig, argv, prog="scripted", description="")

    def open_agent() -> Agent:
        engine = SlowEngine(script, latency_s=float(latency_s))
        return OwningAgent(engine, tools=config.tools or ())

    lines = LineWriter()
    asyncio.run(run_until_signalled(config, open_agent, lines))
    lines.close()


class SlowEngine(ScriptedEngine):
    """Takes its time, but not to warm up."""

    async def generate(self, ids, params, **options):
        engine = ScriptedEngine(script) if params.max_tokens == 1 else super()
        return await engine.generate(ids, params, **options)


class OwningAgent(Agent):
    """Closes its engine, too, as an agent does that opened one by its name."""

    def __init__(self, engine: ScriptedEngine, **options: object) -> None:
        super().__init__(engine, **options)
        self.engine = engine

    async def _release(self) -> None:
        await super()._release()
        if not self._users:
            await self.engine.aclose()


if __name__ == "__main__":
    main()
