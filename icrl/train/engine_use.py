"""How busy a step kept the engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from icrl.runtime.engines.meter import EngineUse, Meter, Metered, Reading, use_between
from icrl.runtime.engines.pool import EnginePool
from icrl.runtime.engines.protocol import Engine

if TYPE_CHECKING:
    from anyio.from_thread import BlockingPortal

__all__ = ["StepUse", "meters_of"]


def meters_of(engine: Engine) -> tuple[Meter, ...]:
    """Return the meters of an engine, or of a pool's servers; none where it has none.

    Example:
        >>> from icrl.testing import ScriptedEngine
        >>> meters_of(ScriptedEngine([]))
        ()
    """
    servers = [member.server for member in engine.members] if isinstance(engine, EnginePool) else [engine]
    return tuple(server.meter for server in servers if isinstance(server, Metered))


class StepUse:
    """Reads an engine's meters around each step.

    Args:
        portal: Leads into the engine's event loop.
        engine: The engine.
    """

    def __init__(self, portal: BlockingPortal, engine: Engine) -> None:
        self._portal = portal
        self._meters = meters_of(engine)
        self._before: Sequence[Reading] = ()

    def begin(self) -> None:
        """Note that a step begins."""
        self._before = self._read()

    def end(self) -> EngineUse | None:
        """Return how the engine was used since the step began; `None` where nobody measures it."""
        return use_between(self._before, self._read())

    def _read(self) -> Sequence[Reading]:
        return self._portal.call(lambda: [meter.read() for meter in self._meters]) if self._meters else ()
