"""Counting tokens for the client, exactly, from the trajectory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
    observed: int
    """Tokens that the server's tools and their separators put between the model's."""


def count(trajectories: Sequence[Trajectory]) -> Usage:
    """Count what the trajectories of one request hold."""
    prompt = trajectories[0].prompt_length
    sampled = [sum(turn.sampled_tokens for turn in t.turns) for t in trajectories]
    return Usage(
        prompt=prompt,
        cached=min(prompt, max((t.turns[0].cached_tokens for t in trajectories if t.turns), default=0)),
        sampled=sum(sampled),
        observed=sum(len(t.ids) - t.prompt_length - own for t, own in zip(trajectories, sampled, strict=True)),
    )
