"""The part of a request that says how to sample, as bytes; the same for thousands of requests."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import msgspec

from icrl.types import SamplingParams

__all__ = ["body"]

NEUTRAL: Mapping[str, Any] = {
    "min_p": 0.0,
    "frequency_penalty": 0.0,
    "presence_penalty": 0.0,
    "repetition_penalty": 1.0,
}
"""What would change the distribution that log-probabilities are of; said aloud, as a server may have other defaults."""

_encode = msgspec.json.Encoder().encode


def body(
    digits: bytes,
    params: SamplingParams,
    *,
    rid: str,
    room: int,
    chunk_tokens: int | None = None,
    deterministic: bool = False,
    cache_key: str | None = None,
    adapter: str | None = None,
) -> bytes:
    """Return the body of a `/generate` request.

    Args:
        digits: The prompt's ids between commas.
        params: How to sample.
        rid: The request's name at the server.
        room: Tokens that still fit into the context.
        chunk_tokens: Asks for a streamed reply in events of so many tokens.
        deterministic: Whether the server samples by seed.
        cache_key: Keys and values are shared with requests of the same key only.
        adapter: Name of the LoRA adapter to sample with.

    Example:
        >>> import json
        >>> request = json.loads(body(b"5,6", SamplingParams(max_tokens=9), rid="r", room=4))
        >>> request["input_ids"], request["sampling_params"]["max_new_tokens"], request["sampling_params"]["top_k"]
        ([5, 6], 4, -1)
    """
    seed = params.seed & 0x7FFF_FFFF if deterministic else None
    tail = _tail(
        params.temperature,
        params.top_p,
        params.top_k,
        min(params.max_tokens, room),
        params.stop,
        seed,
        chunk_tokens,
        cache_key,
        adapter,
    )
    return b"".join((b'{"rid":', _encode(rid), b',"input_ids":[', digits, tail))


@lru_cache(maxsize=1024)
def _tail(
    temperature: float,
    top_p: float,
    top_k: int,
    max_tokens: int,
    stop: tuple[str, ...],
    seed: int | None,
    chunk_tokens: int | None,
    cache_key: str | None,
    adapter: str | None,
) -> bytes:
    """Return everything behind the prompt's ids."""
    sampling: dict[str, Any] = {
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k or -1,
        "max_new_tokens": max_tokens,
        **NEUTRAL,
    }
    if stop:
        sampling["stop"] = stop
    if seed is not None:
        sampling["sampling_seed"] = seed
    if chunk_tokens is not None:
        sampling["stream_interval"] = chunk_tokens
    rest: dict[str, Any] = {"return_logprob": True, "stream": chunk_tokens is not None, "sampling_params": sampling}
    if cache_key is not None:
        rest["extra_key"] = cache_key
    if adapter is not None:
        rest["lora_path"] = adapter
    return b"]," + _encode(rest)[1:]
