"""What is measured, as lines of JSON that survive a kill: one a step, one an evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar

from icrl.errors import ConfigError, DataError
from icrl.runtime.engines.meter import EngineUse
from icrl.wire import decode, encode

__all__ = ["Evaluation", "EvaluationLog", "EvaluationPoint", "MetricsLog", "StepMetrics"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepMetrics:
    """One training step. Rates and means are over the step's trajectories.

    Example:
        >>> StepMetrics(step=1, shots=3.0, reward=0.5, components={"em": 0.5}).em
        0.5
    """

    step: int
    """Number of the step, from 1."""
    stage: int = 0
    """Index of the curriculum's stage."""
    shots: float
    """Mean number of demonstrations in the prompt."""
    reward: float
    """Mean reward."""
    components: Mapping[str, float] = field(default_factory=dict)
    """Mean of each part of the reward, such as `em` and `format`."""
    valid_call_rate: float = 0.0
    """Trajectories with at least one call that a tool answered without error."""
    calls_per_trajectory: float = 0.0
    """Mean number of calls."""
    response_tokens: float = 0.0
    """Mean tokens after the prompt, observations included."""
    sampled_tokens: int = 0
    """Tokens that the policy sampled, in total."""
    informative_groups: int = 0
    """Groups whose rewards differ."""
    generate_s: float = 0.0
    """Seconds that the trainer waited for rollouts, tools included; all of their time unless they overlap updates."""
    sync_s: float = 0.0
    """Seconds that it took to bring the weights to the engine."""
    staleness: float = 0.0
    """Mean number of updates between the weights that began a row and those that it is used on."""
    tool_s: float = 0.0
    """Seconds that tools took, summed over concurrent calls, queueing included; they lie within `generate_s`."""
    update_s: float = 0.0
    """Seconds of the update."""
    tokens_per_s: float = 0.0
    """Sampled tokens a second, from the first to the last of the step's rollouts."""
    loss: float | None = None
    """Loss; like the six below, `None` where it was not measured or not finite."""
    grad_norm: float | None = None
    """Norm of the gradient before clipping."""
    entropy: float | None = None
    """Mean entropy of the policy, in nats a token."""
    kl: float | None = None
    """Mean KL divergence from the reference policy, in nats a token."""
    ratio_mean: float | None = None
    """Mean importance ratio of the policy to the engine that sampled."""
    logprob_gap: float | None = None
    """Largest difference of a sampled token's log-probability between trainer and engine, under the same weights."""
    logprob_gap_mean: float | None = None
    """Its mean."""
    logprob_gap_tokens: int = 0
    """Trained tokens that it rests on: those sampled, with their whole prefix, under the trainer's very weights."""
    clip_fraction: float = 0.0
    """Tokens whose ratio was clipped."""
    engine: EngineUse | None = None
    """How the engine was used from the weight sync before the step to the end of its update; evaluations that come
    between two steps lie outside. `None` where nobody measured it."""
    irregular: Mapping[str, float] = field(default_factory=dict)
    """What the scheduler counted since the last step beside ordinary trajectories; see `RolloutTally`."""
    stop_reasons: Mapping[str, int] = field(default_factory=dict)
    """Why trajectories ended, and how many."""

    @property
    def em(self) -> float | None:
        """Mean exact match, where the reward has that part."""
        return self.components.get("em")

    @property
    def step_s(self) -> float:
        """Seconds of rollout and update."""
        return self.generate_s + self.update_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What an evaluation counted. Rates are means over all samples of all tasks."""

    tasks: int
    """Tasks asked."""
    samples: int
    """Trajectories a task."""
    shots: int
    """Demonstrations in the prompt."""
    em: float
    """Exact match."""
    em_interval: tuple[float, float]
    """95 % interval of `em`, over tasks."""
    f1: float
    """Token overlap with the best reference answer."""
    f1_interval: tuple[float, float]
    """95 % interval of `f1`, over tasks."""
    format_rate: float
    """Responses with the dialect's whole form."""
    valid_call_rate: float
    """Trajectories with at least one call that a tool answered without error."""
    calls: float
    """Calls a trajectory."""
    response_tokens: float
    """Tokens after the prompt, observations included, a trajectory."""
    errors: int
    """Trajectories that infrastructure broke; they count as wrong."""
    wall_s: float
    """Seconds."""
    stop_reasons: Mapping[str, int] = field(default_factory=dict)
    """Why trajectories ended."""
    em_by_world: Mapping[str, float] = field(default_factory=dict)
    """Exact match of the tasks of each world, by `world` in their metadata; empty if there are fewer than two."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationPoint:
    """An evaluation, and when it was made."""

    step: int
    """Training steps before it; 0 is the untrained model."""
    evaluation: Evaluation
    """What it counted."""


class _Stepped(Protocol):
    @property
    def step(self) -> int: ...


S = TypeVar("S", bound=_Stepped)


class _StepLog(Generic[S]):
    """A JSONL file with records in the order of their steps.

    Every record is written at once, so a killed run loses at most the line it was writing; a torn last line is
    dropped by whoever reads or continues the file.

    Args:
        path: The file.
        resume_at: Continue an earlier file after this step, and drop what was written later; `None` starts anew.

    Raises:
        ConfigError: The file cannot be written.
        DataError: The file to continue is damaged.
    """

    kind: ClassVar[type[Any]]

    def __init__(self, path: Path, *, resume_at: int | None = None) -> None:
        self.path = path
        """The file."""
        kept = [] if resume_at is None else [r for r in self.load(path) if r.step <= resume_at]
        # Replaced as a whole: a kill in between must leave either the old file or the new one.
        fresh = path.with_name(f".{path.name}.new")
        try:
            fresh.write_bytes(b"".join(encode(record) + b"\n" for record in kept))
            fresh.replace(path)
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise ConfigError(f"{path}: cannot write it: {error.strerror}") from error

    def append(self, record: S) -> None:
        """Write one record.

        Raises:
            DataError: The disk is full, or failed.
        """
        line = encode(record) + b"\n"
        try:
            while line:
                line = line[self._file.write(line) :]
        except OSError as error:
            raise DataError(f"{self.path}: cannot write step {record.step}: {error.strerror}") from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @classmethod
    def load(cls, path: Path) -> tuple[S, ...]:
        """Read all records; an absent file has none.

        Raises:
            DataError: The file cannot be read, or a line is damaged; the message names it.
        """
        try:
            lines = path.read_bytes().split(b"\n")[:-1]  # what follows the last line end is empty or torn
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise DataError(f"{path}: cannot read it: {error.strerror}") from error
        return tuple(cls._decode(path, number, line) for number, line in enumerate(lines, start=1))

    @classmethod
    def _decode(cls, path: Path, number: int, line: bytes) -> S:
        try:
            record: S = decode(line, cls.kind)
        except DataError as error:
            raise DataError(f"{path}:{number}: {error}") from error
        return record


class MetricsLog(_StepLog[StepMetrics]):
    """`metrics.jsonl`: one `StepMetrics` a line; see `_StepLog` for its arguments.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "metrics.jsonl"
        >>> with MetricsLog(path) as log:
        ...     log.append(StepMetrics(step=1, shots=3.0, reward=0.5))
        >>> [metrics.reward for metrics in MetricsLog.load(path)]
        [0.5]
    """

    kind = StepMetrics


class EvaluationLog(_StepLog[EvaluationPoint]):
    """`evaluations.jsonl`: one `EvaluationPoint` a line; see `_StepLog` for its arguments."""

    kind = EvaluationPoint
