"""What a server answers to `/generate`, decoded into only the fields that are used, and checked.

The decoder knows the types: it skips the text, the timings and the rest without building them, and a log-probability
that is missing, null or not a number does not get past it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec

from icrl.errors import EngineError
from icrl.runtime.engines.sglang.refusal import retryable, said
from icrl.runtime.engines.sglang.versions import Versions
from icrl.trajectory import FinishReason, VersionSpan

__all__ = [
    "Answer",
    "Finish",
    "Meta",
    "Span",
    "check_end",
    "check_tokens",
    "decode",
    "finish_reason",
    "logprobs",
    "malformed",
    "progress",
    "spans",
]


_T = TypeVar("_T")


class Finish(msgspec.Struct, gc=False):
    """Why a generation ended, in the server's words."""

    type: str
    """`stop`, `length` or `abort`."""
    matched: int | str | list[int] | None = None
    """The end token, or the stop string."""
    message: str | None = None
    """Why it was aborted."""
    status_code: int | None = None
    """HTTP status, where an abort is an error."""
    err_type: str | None = None
    """Its class, likewise."""


class Span(msgspec.Struct, gc=False):
    """Tokens `start:end` were sampled with the weights of this name."""

    version: str
    """The name."""
    start: int
    """First token."""
    end: int
    """One past the last token."""


class Meta(msgspec.Struct, gc=False):
    """What is known of a generation besides its tokens."""

    finish_reason: Finish | None = None
    """Absent until it ends."""
    completion_tokens: int = 0
    """Tokens sampled so far."""
    cached_tokens: int = 0
    """Tokens of the prompt that came from the cache."""
    weight_version: str = "default"
    """Name of the weights at the last token."""
    weight_versions: list[Span] | None = None
    """Names of the weights of all tokens; absent until it ends."""
    output_token_logprobs: list[tuple[float, int, str | None]] = []
    """(log-probability, id, text) of each token."""


class Answer(msgspec.Struct, gc=False):
    """A reply, or one event of a streamed reply."""

    output_ids: list[int] = []
    """What was sampled: so far, or since the last event."""
    meta_info: Meta = msgspec.field(default_factory=Meta)
    """What is known of it."""
    error: Any = None
    """What a streamed reply holds instead, where the server refuses."""


class _Reached(msgspec.Struct, gc=False):
    completion_tokens: int = 0
    weight_version: str = "default"


class _Progress(msgspec.Struct, gc=False):
    meta_info: _Reached = msgspec.field(default_factory=_Reached)


_decoder = msgspec.json.Decoder(Answer)
_progress_decoder = msgspec.json.Decoder(_Progress)


def decode(data: bytes | bytearray | memoryview, *, engine: str) -> Answer:
    """Decode a reply.

    Args:
        data: JSON.
        engine: For messages.

    Raises:
        EngineError: It is not JSON (a retry may help), a field has another type, the server refuses, or it failed.

    Example:
        >>> decode(b'{"output_ids": [5], "meta_info": {"completion_tokens": 1}}', engine="e").output_ids
        [5]
    """
    answer = _read(_decoder, data, engine)
    if answer.error is not None:
        raise _refused(data, answer.error, engine)
    check_end(answer.meta_info.finish_reason, engine=engine)
    return answer


def progress(data: bytes | bytearray | memoryview, *, engine: str) -> tuple[int, str]:
    """Return how many tokens there were at an event whose tokens a later one repeats, and the name of the weights.

    Raises:
        EngineError: It is not JSON, or a field has another type.
    """
    reached = _read(_progress_decoder, data, engine).meta_info
    return reached.completion_tokens, reached.weight_version


def _read(decoder: msgspec.json.Decoder[_T], data: bytes | bytearray | memoryview, engine: str) -> _T:
    try:
        return decoder.decode(data)
    except msgspec.ValidationError as error:
        raise EngineError(f"malformed reply: {error}", engine=engine) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise EngineError(f"the reply is not JSON: {error}", engine=engine, retryable=True) from error


def logprobs(answer: Answer, *, engine: str) -> list[float]:
    """Return the log-probability of each sampled token.

    Raises:
        EngineError: There are more or fewer of them than tokens, they are of other tokens, or one is not finite.

    Example:
        >>> meta = Meta(output_token_logprobs=[(-0.5, 6, None)])
        >>> logprobs(Answer(output_ids=[5], meta_info=meta), engine="e")
        Traceback (most recent call last):
        icrl.errors.EngineError: e: malformed reply: output_token_logprobs are of other tokens than output_ids
    """
    triples = answer.meta_info.output_token_logprobs
    if [token for _, token, _ in triples] != answer.output_ids:
        raise malformed("output_token_logprobs are of other tokens than output_ids", engine)
    scores = [score for score, _, _ in triples]
    if not math.isfinite(sum(scores)):
        raise malformed("output_token_logprobs hold a number that is not finite", engine)
    return scores


def check_tokens(ids: Sequence[int], vocab_size: int, *, engine: str) -> None:
    """Refuse sampled ids that the model cannot have sampled.

    Raises:
        EngineError: One of them is outside the vocabulary.
    """
    if ids and (min(ids) < 0 or max(ids) >= vocab_size):
        wrong = next(token for token in ids if not 0 <= token < vocab_size)
        raise malformed(f"sampled id {wrong} is outside the vocabulary of {vocab_size}", engine)


def finish_reason(finish: Finish | None, stop: Sequence[str], *, engine: str) -> FinishReason:
    """Translate why a generation ended.

    Args:
        finish: The server's reason.
        stop: The stop strings that were asked for.
        engine: For messages.

    Raises:
        EngineError: It ended for a reason that nobody asked for.

    Example:
        >>> finish_reason(Finish(type="stop", matched=13), (), engine="e")
        'eos'
        >>> finish_reason(Finish(type="stop", matched="</answer>"), ("</answer>",), engine="e")
        'stop'
    """
    if finish is None:
        raise malformed("it does not say why it ended", engine)
    if finish.type == "length":
        return "length"
    if finish.type == "abort":
        return "abort"
    if finish.type == "stop" and not isinstance(finish.matched, str):
        return "eos"
    if finish.type == "stop" and finish.matched in stop:
        return "stop"
    raise EngineError(f"it ended unasked: {finish.matched or finish.type}", engine=engine)


def spans(meta: Meta, count: int, versions: Versions, *, engine: str) -> tuple[VersionSpan, ...]:
    """Return the weight versions of a whole generation.

    Args:
        meta: What the last reply said.
        count: Tokens of the generation.
        versions: Translates the names.
        engine: For messages.

    Raises:
        EngineError: The spans do not cover the tokens.
    """
    if count == 0:
        return ()
    named = meta.weight_versions
    if not named or len(named) == 1:
        name = named[0].version if named else meta.weight_version
        return (VersionSpan(version=versions.number(name), start=0, end=count),)
    ends = [0, *(span.end for span in named)]
    if [span.start for span in named] != ends[:-1] or ends[-1] != count:
        raise malformed(f"weight_versions do not cover the {count} tokens", engine)
    return tuple(VersionSpan(version=versions.number(s.version), start=s.start, end=s.end) for s in named)


def check_end(finish: Finish | None, *, engine: str) -> None:
    """Refuse what only says that it is an abort.

    Raises:
        EngineError: It is an error, and its tokens are not the model's.
    """
    if finish is not None and finish.type == "abort" and (finish.status_code or finish.err_type):
        status = finish.status_code or 500
        raise EngineError(finish.message or "aborted", engine=engine, status=status, retryable=retryable(status))


def _refused(data: bytes | bytearray | memoryview, error: Any, engine: str) -> EngineError:
    status = error.get("code") if isinstance(error, dict) else None
    status = status if isinstance(status, int) else 400
    return EngineError(said(bytes(data)), engine=engine, status=status, retryable=retryable(status))


def malformed(what: str, engine: str) -> EngineError:
    """Return the error for a reply that breaks the protocol; the same request would fare no better."""
    return EngineError(f"malformed reply: {what}", engine=engine)
