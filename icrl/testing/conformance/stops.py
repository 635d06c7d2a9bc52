"""Where generation ends: stop strings, end tokens, budgets."""

from __future__ import annotations

import asyncio

from icrl.errors import EngineError
from icrl.testing.conformance.subject import OpenSubject, Subject, ensure, greedy
from icrl.trajectory import Generation

__all__ = [
    "bad_requests_are_refused",
    "budgets_are_kept",
    "end_tokens_are_kept",
    "stop_strings_inside_tokens",
    "stop_strings_over_tokens",
]

_FREE = 32


async def stop_strings_inside_tokens(open_subject: OpenSubject) -> None:
    """A string that begins and ends inside one token ends generation after that token, which is kept whole."""
    async with open_subject() as subject:
        free = await greedy(subject, subject.prompt, max_tokens=_FREE)
        pieces = [subject.tokenizer.decode([token]) for token in free.ids]
        inner = [piece[1:-1] or piece for piece in pieces[2:] if piece and "\ufffd" not in piece]
        await _ends_at(subject, free, sorted(set(inner), key=lambda text: (-len(text), text))[:4])


async def stop_strings_over_tokens(open_subject: OpenSubject) -> None:
    """A string that is spread over tokens ends generation after the token that completes it."""
    async with open_subject() as subject:
        free = await greedy(subject, subject.prompt, max_tokens=_FREE)
        text = subject.tokenizer.decode(free.ids)
        spread = [text[start : start + length] for start, length in ((3, 4), (len(text) // 2, 7), (len(text) // 3, 11))]
        await _ends_at(subject, free, spread)


async def _ends_at(subject: Subject, free: Generation, strings: list[str]) -> None:
    async def stopped(string: str) -> Generation:
        return await greedy(
            subject, subject.prompt, max_tokens=_FREE, request_id=f"stop {string!r}", stop=("\0never\0", string)
        )

    decode = subject.tokenizer.decode
    for string, reply in zip(strings, await asyncio.gather(*map(stopped, strings)), strict=True):
        end = next(n for n in range(1, len(free.ids) + 1) if string in decode(free.ids[:n]))
        ensure(reply.ids == free.ids[:end], f"stop {string!r}: {reply.ids} should be {free.ids[:end]}")
        ensure(reply.finish_reason == "stop", f"stop {string!r}: finish reason is {reply.finish_reason!r}")
        ensure(len(reply.logprobs) == end, f"stop {string!r}: {len(reply.logprobs)} logprobs for {end} tokens")


async def end_tokens_are_kept(open_subject: OpenSubject) -> None:
    """The token that ends a turn is part of what was sampled, with its log-probability."""
    async with open_subject() as subject:
        reply = await greedy(subject, subject.ending, max_tokens=subject.long_tokens)
        ensure(reply.finish_reason == "eos", f"finish reason is {reply.finish_reason!r}")
        ensure(reply.ids[-1] in subject.tokenizer.eos_ids, f"the last token is {reply.ids[-1]}, no end token")
        ensure(subject.tokenizer.eos_ids.isdisjoint(reply.ids[:-1]), "tokens follow the end token")


async def budgets_are_kept(open_subject: OpenSubject) -> None:
    """Neither the request's budget of tokens nor the context limit is exceeded, and both are finish reasons."""
    async with open_subject() as subject:
        for budget in (1, 7):
            reply = await greedy(subject, subject.prompt, max_tokens=budget)
            ensure((len(reply.ids), reply.finish_reason) == (budget, "length"), f"budget {budget}: {reply}")
        limit, room = subject.engine.info.context_limit, 8
        prompt = (list(subject.prompt) * (limit // len(subject.prompt) + 1))[: limit - room]
        reply = await greedy(subject, prompt, max_tokens=99)
        ensure(0 < len(reply.ids) <= room, f"{len(reply.ids)} tokens where {room} fit")
        ensure(reply.finish_reason == "length" or len(reply.ids) < room, f"finish reason is {reply.finish_reason!r}")


async def bad_requests_are_refused(open_subject: OpenSubject) -> None:
    """Ids outside the vocabulary, empty and overlong prompts raise an `EngineError`, and the engine lives on."""
    async with open_subject() as subject:
        info = subject.engine.info
        token = subject.prompt[0]
        bad: tuple[list[int], ...] = (
            [],
            [info.vocab_size],
            [token, -1],
            [token, info.vocab_size + 10**6],
            [token] * info.context_limit,
        )
        for ids in bad:
            try:
                await greedy(subject, ids, max_tokens=1)
            except EngineError:
                continue
            raise AssertionError(f"a prompt of {len(ids)} ids that ends with {ids[-1:]} was not refused")
        ensure(len((await greedy(subject, subject.prompt, max_tokens=2)).ids) == 2, "the engine did not survive")
