"""A streamed reply, put together again.

SGLang streams server-sent events, each the whole reply so far (cumulative), or, where it was started with
`--incremental-streaming-output`, what is new. The two are told apart by the data: an event that counts
`completion_tokens` tokens in all and holds as many is cumulative, one that holds the rest is incremental.
"""

from __future__ import annotations

from collections.abc import Sequence

from icrl.runtime.engines.sglang.versions import Versions
from icrl.runtime.engines.sglang.wire import Answer, Finish, Meta, decode, logprobs, malformed, progress
from icrl.trajectory import VersionSpan

__all__ = ["Arrived"]

BOUNDARY = b"\n\n"
PREFIX = b"data: "
END = b"data: [DONE]"


class Arrived:
    r"""What has arrived of a reply.

    Args:
        engine: For messages.

    Example:
        >>> meta = b'{"completion_tokens":%d,"output_token_logprobs":[[-1,5,null]]}'
        >>> event = b'data: {"output_ids":[5],"meta_info":' + meta + b"}\n\n"
        >>> arrived = Arrived(engine="e")
        >>> arrived.feed(event % 1), arrived.feed(event % 2), arrived.ids
        ([5], [5], [5, 5])
    """

    def __init__(self, *, engine: str) -> None:
        self._engine = engine
        self._rest = b""
        self._cumulative = False
        self._marks: list[tuple[int, str]] = []
        self.ids: list[int] = []
        """What was sampled."""
        self.logprobs: list[float] = []
        """The log-probability of each."""
        self.meta = Meta()
        """What the last event said."""

    @property
    def finish(self) -> Finish | None:
        """Why it ended, once it did."""
        return self.meta.finish_reason

    @property
    def names(self) -> tuple[str, ...]:
        """What the server called the weights that it was sampled with, in order."""
        exact = [span.version for span in self.meta.weight_versions or ()]
        return tuple(exact or [name for _, name in self._marks])

    def feed(self, piece: bytes) -> Sequence[int]:
        """Take the next bytes and return the ids that came with them.

        Raises:
            EngineError: The server refuses, or what it says is malformed.
        """
        *events, self._rest = (self._rest + piece).split(BOUNDARY)
        events = [event for event in events if event.startswith(PREFIX) and event != END]
        before = len(self.ids)
        repeated = max(0, len(events) - 1) if self._cumulative else 0  # by the last: all but the names of weights
        for event in events[:repeated]:
            self._mark(*progress(memoryview(event)[len(PREFIX) :], engine=self._engine))
        for event in events[repeated:]:
            self.take(decode(memoryview(event)[len(PREFIX) :], engine=self._engine))
        return self.ids[before:]

    def spans(self, versions: Versions) -> tuple[VersionSpan, ...]:
        """Return the weight versions as the events gave them, exact to an event; the end of a reply knows better."""
        spans: list[VersionSpan] = []
        for mark, name in self._marks:
            version, start = versions.number(name), spans[-1].end if spans else 0
            end = min(mark, len(self.ids))  # the event that was to bring the others did not
            if end == start:
                break
            if spans and spans[-1].version == version:
                start = spans.pop().start
            spans.append(VersionSpan(version=version, start=start, end=end))
        return tuple(spans)

    def take(self, answer: Answer) -> None:
        """Take one reply, whole or in part.

        Raises:
            EngineError: Tokens, log-probabilities and counts do not agree.
        """
        self.meta = answer.meta_info
        arrived, total, new = len(self.ids), answer.meta_info.completion_tokens, len(answer.output_ids)
        if arrived and new == total and answer.output_ids[:arrived] == self.ids:
            self._cumulative = True
            scores = logprobs(answer, engine=self._engine)
            self.ids, self.logprobs = answer.output_ids, scores
        elif arrived + new == total:
            self.logprobs += logprobs(answer, engine=self._engine)
            self.ids += answer.output_ids
        elif not (arrived == total and self.finish is not None and self.finish.type == "abort"):
            # (An incremental server that aborts a request in its queue says the last token again.)
            raise malformed(f"an event of {new} tokens makes {total} out of {arrived}", self._engine)
        self._mark(len(self.ids), self.meta.weight_version)
        if self.ids and self._marks[-1][0] > len(self.ids):
            raise malformed(f"{len(self.ids)} tokens follow {self._marks[-1][0]}", self._engine)

    def _mark(self, end: int, name: str) -> None:
        """Note under which weights the tokens up to `end` were sampled that had not been there before."""
        if end > (self._marks[-1][0] if self._marks else 0):
            self._marks.append((end, name))
