"""What an engine that is told what to say will say: scripts, replies, and where a reply ends."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from icrl.errors import EngineError
from icrl.runtime.engines.stop import StopStrings
from icrl.tokenizer import Tokenizer
from icrl.trajectory import FinishReason

__all__ = ["Babble", "Reply", "Said", "Script", "Speaker", "fake_logprob"]


def fake_logprob(token: int, position: int) -> float:
    """Return the log-probability that scripted engines report for a token at a position of the whole sequence.

    Example:
        >>> fake_logprob(104, 7)
        -0.39453125
    """
    return -((token * 37 + position * 11) % 255 + 1) / 256


Reply = str | Sequence[int]
"""What to say: text, or exact ids."""

Script = Callable[[Sequence[int]], Reply]
"""Decides what to say from the ids so far."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Babble:
    """A script with a law: the next token depends on the last two ids and the position, as with a greedy model.

    A request that continues what another one was given therefore gets what the other would have said next.

    Example:
        >>> babble = Babble(length=40)
        >>> said = babble([1, 2, 3])
        >>> list(babble([1, 2, 3, *said[:7]])) == list(said[7:]) + list(babble([1, 2, 3, *said]))[:7]
        True
    """

    ids: Sequence[int] = tuple(b"etaoin shrdlu, mwfgyp. bvk")
    """What it can say."""
    length: int = 512
    """Tokens of a reply, which is cut at the request's budget."""

    def __call__(self, ids: Sequence[int]) -> list[int]:
        """Go on from the ids so far."""
        before, last = (0, *ids[-2:])[-2:] if len(ids) else (0, 0)
        said: list[int] = []
        for position in range(len(ids), len(ids) + self.length):
            number = (before * 1_103_515_245 + last * 12_345 + position * 2_654_435_761) >> 7
            before, last = last, self.ids[number % len(self.ids)]
            said.append(last)
        return said


@dataclass(frozen=True, slots=True)
class Said:
    """A reply up to where it ends."""

    ids: list[int]
    """The tokens, the one that ends the reply included."""
    reason: FinishReason
    """Why it ends."""
    matched: int | str | None
    """The end token or the stop string."""


class Speaker:
    """Turns a script into replies that end as a model's would: at an end token, a stop string, or the token budget.

    A reply given as text ends with the end token; one given as ids is taken as it is.

    Args:
        replies: A function of the ids so far, or the replies of a session's turns in order.
        tokenizer: Encodes replies.
        name: The engine's name, for messages.

    Example:
        >>> from icrl.testing import ByteTokenizer
        >>> speaker = Speaker(["call</search> more"], ByteTokenizer(), name="scripted")
        >>> said = speaker.reply([1], budget=99, stop=("</search>",), session=None)
        >>> bytes(said.ids), said.reason, said.matched
        (b'call</search>', 'stop', '</search>')
    """

    def __init__(self, replies: Script | Sequence[Reply], tokenizer: Tokenizer, *, name: str) -> None:
        self.tokenizer = tokenizer
        """Encodes replies."""
        self._replies = replies
        self._name = name
        self._turns: Counter[str | None] = Counter()
        self._end = max(tokenizer.eos_ids)

    def reply(self, prompt: Sequence[int], *, budget: int, stop: tuple[str, ...], session: str | None) -> Said:
        """Say the next reply.

        Raises:
            EngineError: The script has nothing left to say.
        """
        reply = self._replies(prompt) if callable(self._replies) else self._next(self._replies, session)
        ids = [*self.tokenizer.encode(reply), self._end] if isinstance(reply, str) else list(reply)
        ids, reason, matched = self._until_the_end(ids)
        if stop and (found := self._find(ids, stop)) is not None:
            ids, reason, matched = ids[: found[0]], "stop", found[1]
        return Said(ids, reason, matched) if len(ids) <= budget else Said(ids[:budget], "length", None)

    def _next(self, replies: Sequence[Reply], session: str | None) -> Reply:
        turn = self._turns[session]
        if turn >= len(replies):
            raise EngineError(
                f"the script has {len(replies)} replies; session {session!r} wants more", engine=self._name
            )
        self._turns[session] += 1
        return replies[turn]

    def _until_the_end(self, ids: list[int]) -> tuple[list[int], FinishReason, int | str | None]:
        if self.tokenizer.eos_ids.isdisjoint(ids):
            return ids, "length", None
        at = next(i for i, token in enumerate(ids) if token in self.tokenizer.eos_ids)
        return ids[: at + 1], "eos", ids[at]

    def _find(self, ids: list[int], stop: tuple[str, ...]) -> tuple[int, str] | None:
        """Return how many tokens there are when the first stop string is complete, and which it is."""
        text = self.tokenizer.decode(ids)
        if not any(string in text for string in stop):
            return None
        watch = StopStrings(stop, self.tokenizer.decode)
        for length in range(1, len(ids) + 1):
            if watch.ends(ids[:length]):
                said = self.tokenizer.decode(ids[:length])
                return length, next(string for string in stop if string in said)
        return None
