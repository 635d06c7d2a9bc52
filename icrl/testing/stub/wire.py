"""Replies of `/generate`, byte by byte as the server writes them."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence

from icrl.testing.script import fake_logprob
from icrl.testing.stub.live import Live
from icrl.testing.stub.requests import Generate, Sampling
from icrl.tokenizer import Tokenizer

__all__ = ["ReplyWriter"]

# The logprob of `fake_logprob` takes 255 values; writing floats is most of the cost of a reply.
_LOGPROBS = [f"[{fake_logprob(0, position * 116)}," for position in range(255)]


def _logprobs(ids: Sequence[int], position: int) -> str:
    """Return triples of logprob, id and nothing."""
    return ",".join(f"{_LOGPROBS[(token * 37 + at * 11) % 255]}{token},null]" for at, token in enumerate(ids, position))


class ReplyWriter:
    """Writes the reply of one request, whole or in pieces.

    Args:
        live: The request.
        request: Its body.
        sampling: Its sampling parameters.
        tokenizer: Turns sampled ids into text.
        incremental: Whether a piece holds only what is new.
        spans: Whether weight versions are reported by token (from 0.5.19).
        weight_version: Name of the weights now.
    """

    __slots__ = ("_incremental", "_live", "_request", "_sampling", "_spans", "_started", "_tokenizer", "_written")

    def __init__(
        self, live: Live, request: Generate, sampling: Sampling, tokenizer: Tokenizer, *, incremental: bool, spans: bool
    ) -> None:
        self._live = live
        self._request = request
        self._sampling = sampling
        self._tokenizer = tokenizer
        self._incremental = incremental
        self._spans = spans
        self._started = time.time()
        self._written = 0

    def piece(self, produced: int, *, over: bool, weight_version: str) -> bytes:
        """Return the JSON object of a reply, or of one event of a stream, when there are so many tokens."""
        live, first = self._live, self._written if self._incremental else 0
        self._written = produced
        ids = live.said.ids[first:produced]
        text = self._text(produced, over=over)[len(self._text(first, over=False)) if first else 0 :]
        meta = (
            f'"id":{json.dumps(live.asked.rid)},"finish_reason":{self._reason(produced) if over else "null"},'
            f'"prompt_tokens":{len(live.asked.ids)},"weight_version":{json.dumps(weight_version)},'
            f'"num_retractions":{live.retractions},"queue_time":0.0,{self._probabilities(ids, first, produced)}'
            f'"reasoning_tokens":0,"completion_tokens":{produced},"cached_tokens":{live.asked.cached_tokens},'
            f'{self._versions(produced) if over else ""}"cached_tokens_details":{self._cached()},"dp_rank":null'
            f'{f""","e2e_latency":{time.time() - self._started}""" if over else ""}'
        )
        return f'{{"text":{json.dumps(text)},"output_ids":[{",".join(map(str, ids))}],"meta_info":{{{meta}}}}}'.encode()

    def _text(self, produced: int, *, over: bool) -> str:
        """Return the text of the first tokens; what matched a stop is cut off unless it was asked for."""
        text = self._tokenizer.decode(self._live.said.ids[:produced])
        matched = self._live.said.matched
        if over and isinstance(matched, str) and not self._sampling.no_stop_trim and not self._live.aborted:
            return text[: text.find(matched)]
        return text

    def _reason(self, produced: int) -> str:
        if self._live.aborted:
            return '{"type":"abort","message":"Aborted","status_code":null,"err_type":null}'
        matched = self._live.said.matched
        if matched is None:
            return f'{{"type":"length","length":{produced}}}'
        return f'{{"type":"stop","matched":{json.dumps(matched)}}}'

    def _probabilities(self, ids: Sequence[int], first: int, produced: int) -> str:
        if not self._request.return_logprob:
            return ""
        prompt, start = self._live.asked.ids, self._request.logprob_start_len
        asked = ""
        if 0 <= start < len(prompt):
            asked = f"[null,{prompt[start]},null]"
            asked += "," + _logprobs(prompt[start + 1 :], start + 1) if start + 1 < len(prompt) else ""
        return (
            f'"input_token_logprobs":[{asked}],"output_token_logprobs":[{_logprobs(ids, len(prompt) + first)}],'
            f'"output_token_logprobs_length":{len(ids) if self._incremental else produced},'
        )

    def _versions(self, produced: int) -> str:
        if not self._spans:
            return ""
        spans = (
            f'{{"version":{json.dumps(version)},"start":{start},"end":{end}}}'
            for version, start, end in self._live.spans(produced)
        )
        return f'"weight_versions":[{",".join(spans)}],'

    def _cached(self) -> str:
        cached = self._live.asked.cached_tokens
        return f'{{"device":{cached},"host":0}}' if cached else "null"
