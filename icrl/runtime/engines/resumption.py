"""Going on with a request elsewhere: what was received, what is still to be sampled, and where it really ends.

The server that continues a request sees the received tokens as a part of its prompt. It cannot see a stop string that
begins in them, so the seam is watched here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from icrl.runtime.engines.protocol import OnDelta
from icrl.runtime.engines.stop import StopStrings
from icrl.seeds import seed_for
from icrl.tokenizer import Tokenizer
from icrl.trajectory import FinishReason, Generation, VersionSpan
from icrl.types import SamplingParams

__all__ = ["Received", "SeamWatch"]


class Received:
    """What has arrived of one request, from however many servers.

    Args:
        params: How the whole request is sampled.
        tokenizer: Decodes, to find stop strings.

    Example:
        >>> from icrl.testing import ByteTokenizer
        >>> received = Received(SamplingParams(max_tokens=9, stop=("</a>",)), ByteTokenizer())
        >>> received.add(Generation(ids=tuple(b"<a> x </"), logprobs=(-1.0,) * 8, finish_reason="abort"), version=3)
        >>> received.ending(), received.rest.max_tokens
        (None, 1)
        >>> received.add(Generation(ids=tuple(b"a"), logprobs=(-1.0,), finish_reason="length"), version=4)
        >>> received.ending(), received.versions
        ((9, 'length'), (VersionSpan(version=3, start=0, end=8), VersionSpan(version=4, start=8, end=9)))
    """

    __slots__ = ("_eos", "_first", "_params", "_searched", "_stop", "_window", "ids", "logprobs", "spans")

    def __init__(self, params: SamplingParams, tokenizer: Tokenizer) -> None:
        self._params = params
        self._eos = tokenizer.eos_ids
        self._stop = StopStrings(params.stop, tokenizer.decode) if params.stop else None
        self._window = max((len(string.encode()) for string in params.stop), default=0) + 4
        self._searched = 0
        self._first: Generation | None = None
        self.ids: list[int] = []
        """[T] the tokens."""
        self.logprobs: list[float] = []
        """[T] their log-probabilities."""
        self.spans: list[VersionSpan] = []
        """Their weight versions."""

    @property
    def versions(self) -> tuple[VersionSpan, ...]:
        """Weight versions, neighbours of one version joined."""
        joined: list[VersionSpan] = []
        for span in self.spans:
            if joined and joined[-1].version == span.version:
                joined[-1] = replace(joined[-1], end=span.end)
            else:
                joined.append(span)
        return tuple(joined)

    @property
    def rest(self) -> SamplingParams:
        """How to sample what is missing: fewer tokens, and a stream of random numbers that was not used yet."""
        got = len(self.ids)
        if not got:
            return self._params
        return replace(
            self._params, max_tokens=self._params.max_tokens - got, seed=seed_for(self._params.seed, "resumed", got)
        )

    def add(self, part: Generation, *, version: int) -> None:
        """Append what one server sampled.

        Args:
            part: It.
            version: The weights that it was sampled under, where the part does not say.
        """
        start = len(self.ids)
        self._first = self._first or part
        self.ids += part.ids
        self.logprobs += part.logprobs
        spans = part.versions or (VersionSpan(version=version, start=0, end=len(part.ids)),) * bool(part.ids)
        self.spans += [VersionSpan(version=s.version, start=start + s.start, end=start + s.end) for s in spans]

    def completes(self, ids: Sequence[int]) -> bool:
        """Tell whether the last of the sampled `ids` completes a stop string."""
        return self._stop is not None and self._stop.ends(ids[-self._window :])

    def ending(self) -> tuple[int, FinishReason] | None:
        """Find where the request is over, though no server said so: at a stop string, an end token or its budget.

        Returns:
            The number of tokens that belong to it, and why it ends there; `None` while it goes on.
        """
        if self._stop is not None:
            for at in range(self._searched, len(self.ids)):
                if self.completes(self.ids[max(0, at + 1 - self._window) : at + 1]):
                    return at + 1, "stop"
            self._searched = len(self.ids)
        if self.ids and self.ids[-1] in self._eos:
            return len(self.ids), "eos"
        return (len(self.ids), "length") if len(self.ids) >= self._params.max_tokens else None

    def generation(self, length: int, reason: FinishReason, *, prompt_tokens: int, wall_s: float) -> Generation:
        """Return the first `length` tokens as if one server had sampled them all.

        Args:
            length: How many.
            reason: Why it ended.
            prompt_tokens: Length of the prompt that was asked for.
            wall_s: Seconds since then.
        """
        spans = [replace(span, end=min(span.end, length)) for span in self.versions if span.start < length]
        return Generation(
            ids=tuple(self.ids[:length]),
            logprobs=tuple(self.logprobs[:length]),
            finish_reason=reason,
            versions=tuple(spans),
            prompt_tokens=prompt_tokens,
            cached_tokens=0 if self._first is None else min(self._first.cached_tokens, prompt_tokens),
            wall_s=wall_s,
        )


class SeamWatch:
    """Passes new ids on until they complete a stop string that began before the seam.

    Args:
        received: What was received before the seam.
        tell: Hears new ids.
        over: Called once when a stop string is complete; nothing is passed on afterwards.
    """

    def __init__(self, received: Received, tell: OnDelta | None, over: Callable[[], None]) -> None:
        self._received = received
        self._tell = tell
        self._over = over
        self._ids = list(received.ids)
        self._ended = False

    def __call__(self, ids: Sequence[int]) -> None:
        """Take new ids."""
        if self._ended:
            return
        known = len(self._ids)
        for token in ids:
            self._ids.append(token)
            if self._received.completes(self._ids):
                self._ended = True
                break
        if self._tell is not None:
            self._tell(tuple(self._ids[known:]))
        if self._ended:
            self._over()
