"""The sampled tokens behind the words that a reader was shown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from icrl.serve.narration import GAPS
from icrl.serve.spans import Span, tokens_of
from icrl.tokenizer import Tokenizer
from icrl.trajectory import Trajectory

__all__ = ["said_tokens"]


def said_tokens(
    tokenizer: Tokenizer, trajectory: Trajectory, spans: Mapping[int, Sequence[Span]], shown: int
) -> Iterator[tuple[str, float]]:
    """Yield the text and the log-probability of every token of which a part was shown.

    Args:
        tokenizer: Decodes.
        trajectory: The run.
        spans: Where words stand in the text of its turns.
        shown: Characters shown in all; a stop string may have cut the rest.
    """
    for segment in trajectory.segments:
        said = [span for span in spans.get(segment.turn, ()) if span.label == "said"]
        if segment.logprobs is None or not (words := _trimmed(segment.text, said)):
            continue
        seen = _first(words, shown)
        for token in tokens_of(tokenizer, segment.ids, seen):
            yield tokenizer.decode([segment.ids[token]]), segment.logprobs[token]
        shown -= sum(span.end - span.start for span in words) + len(GAPS["said"])


def _trimmed(text: str, spans: Sequence[Span]) -> list[Span]:
    """Leave out the white space around the whole."""
    words = "".join(text[span.start : span.end] for span in spans)
    before, length = len(words) - len(words.lstrip()), len(words.strip())
    return _first(_after(spans, before), length)


def _after(spans: Sequence[Span], skipped: int) -> list[Span]:
    left: list[Span] = []
    for span in spans:
        start = min(span.start + skipped, span.end)
        skipped -= start - span.start
        left.append(span._replace(start=start))
    return left


def _first(spans: Sequence[Span], length: int) -> list[Span]:
    """Return what holds the first characters."""
    taken: list[Span] = []
    for span in spans:
        if length <= 0:
            break
        taken.append(span._replace(end=min(span.end, span.start + length)))
        length -= span.end - span.start
    return [span for span in taken if span.start < span.end]
