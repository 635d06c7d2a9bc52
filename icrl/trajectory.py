"""What happened, token by token: generations, segments, trajectories, groups, rows.

All are immutable, compare by value and travel as JSON (`icrl.wire`). Laws are checked on construction, so a value that
exists is a value that holds them.

    Generation, VersionSpan      what one engine call returned
    Segment, Turn, Trajectory    what happened, with the provenance of every token
    Group, Row                   what training eats
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

from icrl.errors import DataError
from icrl.types import Task, ToolCall, ToolResult, check

__all__ = [
    "Failure",
    "FinishReason",
    "Generation",
    "Group",
    "MaskPolicy",
    "Role",
    "Row",
    "Segment",
    "Source",
    "StopReason",
    "Trajectory",
    "Turn",
    "VersionSpan",
    "policy_tokens",
    "shared_prefix",
]

Source = Literal["prompt", "policy", "tool", "runtime"]
"""Who put a token into the sequence; the only input of a mask policy."""

Role = Literal["system", "demo", "history", "query", "text", "tool_result", "notice", "separator"]
"""What a run of tokens is for."""

FinishReason = Literal["eos", "stop", "length", "abort"]
"""Why one engine call ended: end token, stop string, token budget, or abort."""

MaskPolicy = Callable[[Source], bool]
"""Decides from provenance alone whether a segment's tokens enter the loss."""


def policy_tokens(source: Source) -> bool:
    """Train exactly the tokens that the policy sampled (the paper's mask)."""
    return source == "policy"


class StopReason(StrEnum):
    """Why a trajectory ended. Limits are reasons, not exceptions."""

    ANSWER = "answer"
    """The dialect recognised a final answer."""
    END_OF_TURN = "end_of_turn"
    """The model ended its turn without a call and without a marked answer."""
    CLIENT_CALL = "client_call"
    """The last turn calls tools that whoever asked runs himself; he may go on with their results."""
    MAX_TURNS = "max_turns"
    """`Limits.max_turns` engine calls were made."""
    MAX_TOKENS = "max_tokens"
    """`Limits.max_tokens` response tokens were reached."""
    MAX_TOOL_CALLS = "max_tool_calls"
    """The model asked for more than `Limits.max_tool_calls` calls."""
    CONTEXT_LIMIT = "context_limit"
    """The engine's context window is full."""
    DEADLINE = "deadline"
    """`Limits.deadline_s` passed."""
    ABORTED = "aborted"
    """Somebody stopped the run; what was sampled until then is here."""
    STALLED = "stalled"
    """Nothing moved for too long; `Trajectory.error` names what was waited for."""
    ERROR = "error"
    """The infrastructure failed; `Trajectory.error` says how."""

    @property
    def failed(self) -> bool:
        """Whether something other than the policy ended the trajectory, which then says nothing about the policy."""
        return self in (StopReason.ERROR, StopReason.STALLED)


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionSpan:
    """Tokens `start:end` of a generation were sampled under weight version `version`."""

    version: int
    """Weight version; grows by one with every update."""
    start: int
    """First token, relative to the generation."""
    end: int
    """One past the last token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """What one engine call sampled.

    Example:
        >>> Generation(ids=(5, 7), logprobs=(-0.1, -2.3), finish_reason="eos").ids
        (5, 7)
    """

    ids: tuple[int, ...]
    """[T] sampled ids, end token and stop-string tokens included."""
    logprobs: tuple[float, ...]
    """[T] log-softmax(logits / temperature) of each sampled id, before top-k and top-p (unscaled at 0)."""
    finish_reason: FinishReason
    """Why it ended."""
    versions: tuple[VersionSpan, ...] = ()
    """Weight versions, covering 0:T without gaps."""
    prompt_tokens: int = 0
    """Tokens of the input."""
    cached_tokens: int = 0
    """Of those, how many came from a cache."""
    wall_s: float = 0.0
    """Seconds from request to last token."""

    def __post_init__(self) -> None:
        check(len(self.logprobs) == len(self.ids), "Generation.logprobs", "needs one entry for each of the ids")


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A run of tokens with one provenance.

    Example:
        >>> Segment(source="policy", role="text", ids=(5, 7), text="hi", logprobs=(-0.1, -2.3)).ids
        (5, 7)
    """

    source: Source
    """Who produced the tokens."""
    role: Role
    """What they are for."""
    ids: tuple[int, ...]
    """[T] token ids, exactly as the engine saw or sampled them."""
    text: str = ""
    """Their text; for display and rewards, never encoded again."""
    turn: int = 0
    """Index of the engine call that the tokens belong to, prompts being 0."""
    logprobs: tuple[float, ...] | None = None
    """[T] sampling log-probabilities; present if and only if `source == "policy"`."""
    versions: tuple[VersionSpan, ...] = ()
    """Weight versions of sampled tokens."""
    calls: tuple[ToolCall, ...] = ()
    """Tool calls found in sampled tokens, with their token ranges."""
    result: ToolResult | None = None
    """The tool result that a `tool_result` segment shows."""

    def __post_init__(self) -> None:
        size, logprobs = len(self.ids), self.logprobs
        check((logprobs is not None) == (self.source == "policy"), "Segment.logprobs", "present iff source is 'policy'")
        if logprobs is None:
            check(not self.versions, "Segment.versions", "only sampled tokens have weight versions")
            check(not self.calls, "Segment.calls", "only sampled tokens make calls")
            return
        check(len(logprobs) == size, "Segment.logprobs", "needs one entry for each of the ids")
        check(_all_finite(logprobs), "Segment.logprobs", "must be finite")
        check(all(c.end <= size for c in self.calls), "Segment.calls", "range runs past the segment")


def _all_finite(values: Sequence[float]) -> bool:
    return math.isfinite(sum(values)) or all(map(math.isfinite, values))  # a finite sum holds nothing else


def shared_prefix(segments: Sequence[Segment]) -> int:
    """Count the leading tokens that other trajectories may share: the instruction and the demonstrations."""
    shared = itertools.takewhile(lambda s: s.source == "prompt" and s.role in ("system", "demo"), segments)
    return sum(len(s.ids) for s in shared)


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """The bookkeeping of one engine call."""

    index: int
    """Position in the trajectory, from 0."""
    finish_reason: FinishReason
    """Why the engine stopped."""
    prompt_tokens: int
    """Tokens of the sequence before this turn."""
    sampled_tokens: int
    """Tokens sampled."""
    cached_tokens: int
    """Prompt tokens that the engine did not have to recompute."""
    generate_s: float
    """Seconds the engine call took."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """An infrastructure error that ended a trajectory, kept as data."""

    kind: str
    """Class name of the exception."""
    message: str
    """Its message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trajectory:
    """Everything that happened while one task was worked on.

    Concatenating the ids of its segments gives exactly the sequence that the engine saw and sampled. The loss mask
    is not stored: it is derived from provenance by a mask policy.

    Example:
        >>> prompt = Segment(source="prompt", role="query", ids=(1, 2), text="q")
        >>> reply = Segment(source="policy", role="text", ids=(3,), text="a", logprobs=(-0.5,))
        >>> t = Trajectory(id="t0", task=Task(query="q"), segments=(prompt, reply), stop_reason=StopReason.ANSWER)
        >>> t.ids, t.mask()
        ((1, 2, 3), (False, False, True))
    """

    id: str
    """Unique within a run."""
    task: Task
    """What was asked."""
    segments: tuple[Segment, ...]
    """What happened, in order; the prompt first."""
    stop_reason: StopReason
    """Why it ended."""
    answer: str | None = None
    """The final answer as the dialect read it from the response."""
    turns: tuple[Turn, ...] = ()
    """One record an engine call."""
    shots: int = 0
    """Demonstrations in the prompt."""
    wall_s: float = 0.0
    """Seconds from start to stop."""
    error: Failure | None = None
    """What broke, where `stop_reason.failed`."""

    def __post_init__(self) -> None:
        started = False
        for i, segment in enumerate(self.segments):
            if started and segment.source == "prompt":
                raise DataError(f"segments[{i}].source: prompt after the response")
            started = started or segment.source != "prompt"
        check((self.error is not None) == self.failed, "Trajectory.error", "must be present iff the run failed")

    @property
    def failed(self) -> bool:
        """Whether something other than the policy ended it, so that it says nothing about the policy."""
        return StopReason(self.stop_reason).failed

    @property
    def ids(self) -> tuple[int, ...]:
        """[T] the whole token sequence."""
        return tuple(i for segment in self.segments for i in segment.ids)

    @property
    def prompt_length(self) -> int:
        """Number of prompt tokens."""
        return sum(len(s.ids) for s in self.segments if s.source == "prompt")

    @property
    def shared_prefix(self) -> int:
        """Leading tokens that other trajectories may share: the instruction and the demonstrations."""
        return shared_prefix(self.segments)

    @property
    def response(self) -> tuple[Segment, ...]:
        """The segments after the prompt; the only ones a reward may read."""
        return tuple(s for s in self.segments if s.source != "prompt")

    @property
    def response_text(self) -> str:
        """The text after the prompt, observations included."""
        return "".join(s.text for s in self.response)

    @property
    def calls(self) -> tuple[ToolCall, ...]:
        """Every tool call, in order."""
        return tuple(call for s in self.segments for call in s.calls)

    @property
    def results(self) -> tuple[ToolResult, ...]:
        """Every tool result the model was shown, in order."""
        return tuple(s.result for s in self.segments if s.result is not None)

    @property
    def sampled_tokens(self) -> int:
        """Number of tokens that the policy sampled."""
        return sum(len(s.ids) for s in self.segments if s.source == "policy")

    def mask(self, policy: MaskPolicy = policy_tokens) -> tuple[bool, ...]:
        """Derive the loss mask from provenance.

        Args:
            policy: Maps a segment's source to whether its tokens are trained.

        Returns:
            [T] one flag a token of `ids`.
        """
        return tuple(flag for s in self.segments for flag in (policy(s.source),) * len(s.ids))

    def logprobs(self) -> tuple[float, ...]:
        """Return [T] sampling log-probabilities, 0.0 where a token was not sampled."""
        return tuple(p for s in self.segments for p in (s.logprobs or (0.0,) * len(s.ids)))

    def versions(self) -> tuple[int, int]:
        """Return the oldest and newest weight version that sampled a token, or (0, 0)."""
        seen = [span.version for s in self.segments for span in s.versions]
        return (min(seen), max(seen)) if seen else (0, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The trajectories of one task, with their rewards; a bad one is data, not an exception.

    Example:
        >>> Group(task=Task(query="q"), trajectories=(), rewards=()).informative
        False
    """

    task: Task
    """The task they share."""
    trajectories: tuple[Trajectory, ...]
    """[G] in the order they were asked for."""
    rewards: tuple[float, ...]
    """[G] total reward of each."""
    components: tuple[Mapping[str, float], ...] = ()
    """[G] the reward's parts, by name."""

    def __post_init__(self) -> None:
        check(len(self.rewards) == len(self.trajectories), "Group.rewards", "one reward a trajectory is needed")
        check(all(map(math.isfinite, self.rewards)), "Group.rewards", "must be finite")

    @property
    def informative(self) -> bool:
        """Whether the rewards of the members that did not fail differ, so that an advantage can tell them apart."""
        return len({reward for _, reward in self.scored()}) > 1

    def scored(self) -> Iterator[tuple[Trajectory, float]]:
        """Iterate over the trajectories that did not fail, with their rewards."""
        pairs = zip(self.trajectories, self.rewards, strict=True)
        return ((t, r) for t, r in pairs if not t.failed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One flat training record: the form that TRL, verl, slime, prime-rl and AReaL all take.

    Example:
        >>> row = Row(token_ids=(1, 2, 3), prompt_length=2, loss_mask=(False, False, True), logprobs=(0.0, 0.0, -0.5),
        ...           reward=1.0, group_id="g", trajectory_id="t", index=0, temperature=1.0, stop_reason="answer")
        >>> sum(row.loss_mask)
        1
    """

    token_ids: tuple[int, ...]
    """[T] the whole sequence."""
    prompt_length: int
    """Tokens before the response."""
    loss_mask: tuple[bool, ...]
    """[T] which tokens are trained."""
    logprobs: tuple[float, ...]
    """[T] sampling log-probabilities; 0.0 where the mask is false."""
    reward: float
    """Total reward of the trajectory."""
    advantage: float | None = None
    """Advantage of the trajectory, or `None` where the trainer computes it."""
    group_id: str
    """Rows of one task share it."""
    trajectory_id: str
    """Rows cut from one trajectory share it."""
    index: int
    """Position among the rows of the trajectory."""
    temperature: float
    """Temperature of sampling; the loss must use the same."""
    stop_reason: StopReason
    """Why the trajectory ended."""
    weight_versions: tuple[int, int] = (0, 0)
    """Oldest and newest weight version that sampled a token."""
    exact: tuple[VersionSpan, ...] = ()
    """Tokens that were sampled, with their whole prefix, under one known version."""
    shared_prefix: int = 0
    """Leading tokens that rows of the same batch may share (instruction and demonstrations)."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """Anything else, such as `shots`."""

    def __post_init__(self) -> None:
        length = len(self.token_ids)
        for name in ("loss_mask", "logprobs"):
            column = getattr(self, name)
            check(len(column) == length, f"Row.{name}", f"has {len(column)} entries for {length} tokens")
        check(_all_finite(self.logprobs), "Row.logprobs", "must be finite")
        check(0 < self.prompt_length <= length, "Row.prompt_length", f"{self.prompt_length} of {length} tokens")
        check(not any(self.loss_mask[: self.prompt_length]), "Row.loss_mask", "trains prompt tokens")
        check(0 <= self.shared_prefix <= self.prompt_length, "Row.shared_prefix", "reaches into the response")
