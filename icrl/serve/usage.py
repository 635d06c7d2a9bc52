"""Counting tokens for the client, exactly, from the trajectory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from icrl.serve.spans import Span, tokens_of
from icrl.tokenizer import Tokenizer
from icrl.trajectory import Trajectory

__all__ = ["Usage", "count"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens of one request, all choices together."""

    prompt: int
    """Tokens of the prompt, counted once."""
    cached: int
    """Of those, how many the engine did not have to compute."""
    sampled: int
    """Tokens that the model sampled, thoughts and calls included."""
    thought: int
    """Of those, how many belong to thoughts; the marks around them do not."""
    observed: int
    """Tokens that the server's tools and their separators put between the model's."""


def count(
    trajectories: Sequence[Trajectory], spans: Sequence[Mapping[int, Sequence[Span]]], tokenizer: Tokenizer
) -> Usage:
    """Count what the trajectories of one request hold.

    Args:
        trajectories: One a choice.
        spans: Where thoughts and words stand in the turns of each.
        tokenizer: Theirs.
    """
    prompt = trajectories[0].prompt_length
    sampled = [t.sampled_tokens for t in trajectories]
    return Usage(
        prompt=prompt,
        cached=min(prompt, max((t.turns[0].cached_tokens for t in trajectories if t.turns), default=0)),
        sampled=sum(sampled),
        thought=sum(_thought(t, own, tokenizer) for t, own in zip(trajectories, spans, strict=True)),
        observed=sum(len(t.ids) - t.prompt_length - own for t, own in zip(trajectories, sampled, strict=True)),
    )


def _thought(trajectory: Trajectory, spans: Mapping[int, Sequence[Span]], tokenizer: Tokenizer) -> int:
    return sum(
        len(tokens_of(tokenizer, segment.ids, (s for s in spans.get(segment.turn, ()) if s.label == "thought")))
        for segment in trajectory.segments
        if segment.source == "policy"
    )
