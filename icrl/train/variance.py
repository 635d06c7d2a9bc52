"""Finding rewards that teach nothing.

An advantage compares trajectories of one task, so a part of the reward that never differs within a group has no
gradient, however much it varies from task to task. A format reward that is computed on prompt and response is such a
part: the demonstrations already have the form.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from icrl.trajectory import Group

__all__ = ["VarianceMonitor"]


class VarianceMonitor:
    """Watches whether the parts of the reward ever differ within a group.

    Args:
        patience: Groups to see before a part is called inert.

    Example:
        >>> from icrl.trajectory import StopReason, Trajectory
        >>> from icrl.types import Task
        >>> def group(query):
        ...     t = Trajectory(id=query, task=Task(query=query), segments=(), stop_reason=StopReason.ANSWER)
        ...     return Group(task=t.task, trajectories=(t, t), rewards=(1.0, 1.0), components=({"form": 1.0},) * 2)
        >>> monitor = VarianceMonitor(patience=2)
        >>> monitor.observe([group("a")])
        ()
        >>> print(*monitor.observe([group("b")]))
        reward component 'form' never differed within any of 2 groups: it cannot teach anything; it was always 1
    """

    def __init__(self, *, patience: int = 64) -> None:
        self._patience = patience
        self._groups: Counter[str] = Counter()
        self._varied: set[str] = set()
        self._reported: set[str] = set()
        self._values: dict[str, set[float]] = {}
        self._tasks: set[str] = set()

    @property
    def inert(self) -> tuple[str, ...]:
        """Components that `patience` groups of different tasks gave no variance."""
        enough = [name for name, count in self._groups.items() if count >= self._patience]
        return tuple(sorted(set(enough) - self._varied)) if len(self._tasks) > 1 else ()

    def observe(self, groups: Iterable[Group]) -> tuple[str, ...]:
        """Look at more groups and return a warning for each component found inert for the first time."""
        for group in groups:
            self._look(group)
        new = [name for name in self.inert if name not in self._reported]
        self._reported.update(new)
        return tuple(map(self._warning, new))

    def _look(self, group: Group) -> None:
        pairs = zip(group.trajectories, group.components, strict=False)
        parts = [parts for trajectory, parts in pairs if not trajectory.failed]
        if len(parts) < 2:
            return
        self._tasks.add(group.task.id or str(group.task.query))
        for name in parts[0]:
            values = {part.get(name, 0.0) for part in parts}
            self._groups[name] += 1
            if len(values) > 1:
                self._varied.add(name)
            if len(seen := self._values.setdefault(name, set())) < 2:
                seen.update(values)

    def _warning(self, name: str) -> str:
        values = self._values[name]
        seen = f"it was always {next(iter(values)):g}" if len(values) == 1 else "it differs between tasks only"
        return (
            f"reward component {name!r} never differed within any of {self._groups[name]} groups: "
            f"it cannot teach anything; {seen}"
        )
