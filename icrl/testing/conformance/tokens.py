"""What tokens are, and what is told about them."""

from __future__ import annotations

import asyncio

from icrl.testing.conformance.subject import OpenSubject, ensure, greedy, need
from icrl.types import SamplingParams

__all__ = [
    "company_changes_nothing",
    "deltas_are_the_tokens",
    "logprobs_are_those_of_a_full_pass",
    "prefixes_are_reused",
    "resumed_is_uninterrupted",
]

_FREE = 24


async def deltas_are_the_tokens(open_subject: OpenSubject) -> None:
    """What `on_delta` hears joins to the ids, and versions cover them without gaps."""
    async with open_subject() as subject:
        need("deltas" in subject.engine.info.capabilities, "the engine does not say when tokens arrive")
        heard: list[int] = []
        reply = await greedy(subject, subject.prompt, max_tokens=_FREE, on_delta=heard.extend)
        ensure(tuple(heard) == reply.ids, f"{heard} was heard of {reply.ids}")
        ensure(reply.prompt_tokens == len(subject.prompt), f"prompt_tokens is {reply.prompt_tokens}")
        covered = [position for span in reply.versions for position in range(span.start, span.end)]
        ensure(covered == [*range(len(reply.ids))], f"versions {reply.versions} do not cover {len(reply.ids)} tokens")


async def resumed_is_uninterrupted(open_subject: OpenSubject) -> None:
    """A request that continues what another one was given ends as the other would have."""
    async with open_subject() as subject:
        need(subject.exact, "greedy replies of this engine depend on how they are computed")
        whole = await greedy(subject, subject.prompt, max_tokens=_FREE)
        for cut in (1, 9, _FREE - 1):
            part = await greedy(subject, subject.prompt, max_tokens=cut, request_id="part", session="s")
            rest = await greedy(
                subject, [*subject.prompt, *part.ids], max_tokens=_FREE - cut, request_id="rest", session="s"
            )
            ensure(part.ids + rest.ids == whole.ids, f"cut at {cut}: {part.ids} + {rest.ids} is not {whole.ids}")


async def company_changes_nothing(open_subject: OpenSubject) -> None:
    """Requests that run together say what they would say alone."""
    async with open_subject() as subject:
        need(subject.exact, "greedy replies of this engine depend on how they are computed")
        alone = await greedy(subject, subject.prompt, max_tokens=_FREE)
        calls = [greedy(subject, subject.prompt, max_tokens=4 + i, request_id=f"r{i}") for i in range(_FREE - 4)]
        for i, reply in enumerate(await asyncio.gather(*calls)):
            ensure(reply.ids == alone.ids[: 4 + i], f"in company: {reply.ids} is not the start of {alone.ids}")


async def logprobs_are_those_of_a_full_pass(open_subject: OpenSubject) -> None:
    """Log-probabilities are those of the scaled distribution before top-k and top-p, unscaled at temperature 0."""
    async with open_subject() as subject:
        need("logprobs" in subject.engine.info.capabilities, "the engine reports no log-probabilities")
        if subject.logprobs is None:
            need(False, "there is nothing to compare log-probabilities with")
            return
        for temperature, top_p, top_k in ((0.0, 1.0, 0), (1.0, 1.0, 0), (0.5, 0.9, 20), (1.3, 1.0, 0)):
            params = SamplingParams(temperature=temperature, top_p=top_p, top_k=top_k, max_tokens=_FREE, seed=7)
            reply = await subject.engine.generate(subject.prompt, params, request_id="r")
            want = subject.logprobs(subject.prompt, reply.ids, temperature)
            worst = max(abs(got - right) for got, right in zip(reply.logprobs, want, strict=True))
            ensure(worst <= subject.tolerance, f"at temperature {temperature} logprobs are {worst:.2g} off")


async def prefixes_are_reused(open_subject: OpenSubject) -> None:
    """The next turn of a session computes only what is new."""
    async with open_subject() as subject:
        need("prefix_cache" in subject.engine.info.capabilities, "the engine reuses nothing")
        first = await greedy(subject, subject.prompt, max_tokens=_FREE, request_id="1", session="s")
        longer = [*subject.prompt, *first.ids, *subject.prompt[:3]]
        second = await greedy(subject, longer, max_tokens=4, request_id="2", session="s")
        known = len(subject.prompt) + len(first.ids) - 1  # the last sampled token has no keys and values yet
        ensure(second.prompt_tokens == len(longer), f"prompt_tokens is {second.prompt_tokens}")
        ensure(
            known <= second.cached_tokens < len(longer),
            f"{second.cached_tokens} of {len(longer)} tokens were reused where {known} were known",
        )
