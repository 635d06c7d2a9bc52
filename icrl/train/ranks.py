"""Several trainer processes, as `accelerate launch` starts them: the first leads, the others follow.

Rank 0 has everything that there is one of: the event loop, engine, tools, logs, the report. The trainers of all ranks
make every optimizer step together. What rank 0 does in between and needs the others for, it tells them: to take part in
gathering sharded weights, to take the rows of the next step, to stop.
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

from icrl.errors import ConfigError

__all__ = ["Ranks"]

PATIENCE = timedelta(days=7)
"""How long a rank waits for the next word: rollouts and evaluations may take their time."""


class Ranks:
    """This process's place among the trainer's processes.

    Args:
        rank: Its number, from 0.
        world: How many there are.

    Example:
        >>> Ranks(rank=0, world=1).leads
        True
    """

    def __init__(self, *, rank: int, world: int) -> None:
        self.rank = rank
        """Number of this process."""
        self.world = world
        """How many processes train."""
        self._group: Any = None
        if world > 1:
            import torch
            from accelerate import PartialState

            PartialState(cpu=not torch.cuda.is_available())
            # A group of its own: words go through memory, not through the accelerators' queue and its time limit.
            self._group = torch.distributed.new_group(backend="gloo", timeout=PATIENCE)

    @classmethod
    def from_environment(cls) -> Ranks:
        """Read what a launcher such as `accelerate launch` or `torchrun` has set.

        Raises:
            ConfigError: The variables make no sense.
        """
        rank, world = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
        if not (rank.isdecimal() and world.isdecimal() and int(rank) < int(world)):
            raise ConfigError(f"RANK, WORLD_SIZE: {rank!r} of {world!r} is no place among processes; unset them")
        return cls(rank=int(rank), world=int(world))

    @property
    def leads(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    def tell(self, word: str, value: object = None) -> None:
        """Tell the other ranks something; they have to be listening."""
        if self.world > 1:
            import torch.distributed

            torch.distributed.broadcast_object_list([word, value], src=0, group=self._group)

    def hear(self) -> tuple[str, Any]:
        """Wait for what rank 0 tells."""
        import torch.distributed

        heard: list[Any] = [None, None]
        torch.distributed.broadcast_object_list(heard, src=0, group=self._group)
        return heard[0], heard[1]
