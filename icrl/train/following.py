"""What the ranks after the first do: make the same optimizer steps on their share of the rows."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from icrl.errors import WeightSyncError
from icrl.runtime.engines.adapter import AdapterMode
from icrl.runtime.model import find_model
from icrl.train.checkpoint import checkpoint_directory, latest_checkpoint
from icrl.train.config import TrainConfig
from icrl.train.ranks import Ranks
from icrl.train.source import Interrupted
from icrl.train.sync import merged_weights, push
from icrl.train.trainer import AfterStep, build_trainer
from icrl.trajectory import Row

__all__ = ["FollowingSource", "follow"]


class FollowingSource:
    """A `RowSource` that hears the rows from rank 0.

    Args:
        ranks: Leads to rank 0.
        model: Returns the trainer's model.
    """

    def __init__(self, ranks: Ranks, model: Callable[[], Any]) -> None:
        self._ranks = ranks
        self._model = model
        self.finished = False
        """Whether the last step's rows are to be the last."""

    def rows(self, step: int, model: Any) -> Sequence[Row]:
        """Wait for the rows of a step.

        Raises:
            Interrupted: Rank 0 stops; the step did not happen.
        """
        rows, self.finished = self.listen("rows")
        return list(rows)

    def logged(self, step: int, values: dict[str, float]) -> None:
        """Wait until rank 0 has dealt with a completed step."""
        self.listen("logged")

    def save(self, directory: str, step: int) -> None:
        """Write nothing; rank 0 does."""

    def listen(self, until: str) -> Any:
        """Do what rank 0 says until it says the word; return what came with it."""
        while True:
            word, value = self._ranks.hear()
            if word == until:
                return value
            if word == "stop":
                raise Interrupted
            self._push(value) if word == "push" else self._gather()

    def _push(self, adapters: AdapterMode) -> None:
        """Take part in a push, at whose end all ranks tell each other whether it worked."""
        with suppress(WeightSyncError):  # rank 0 raises it, too, and says how it goes on
            asyncio.run(push(None, self._model(), 0, adapters=adapters))

    def _gather(self) -> None:
        """Take part where sharded weights are gathered, which all do, parameter by parameter."""
        with merged_weights(self._model()) as weights:
            weights.drain()


def follow(config: TrainConfig, directory: Path, ranks: Ranks) -> None:
    """Train along with rank 0 until it is done.

    Args:
        config: What to do; the same as rank 0's.
        directory: The run directory.
        ranks: Leads to rank 0.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # rank 0 hears it, and tells
    checkpoint = latest_checkpoint(directory) if config.resume is not None else None
    source = FollowingSource(ranks, lambda: trainer.plain_model)
    callback = AfterStep(lambda: source.finished, config.save_every)
    trainer = build_trainer(config, find_model(config.model), checkpoint_directory(directory), source, callback)
    source.listen("train")
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except Interrupted:
        trainer.save_now()
    source.listen("done")
