"""The conformance checks see engines that break a law: one mutant for each."""

import asyncio
from contextlib import asynccontextmanager
from dataclasses import replace
from unittest import SkipTest

import pytest

from icrl.errors import EngineError
from icrl.testing import Babble, ByteTokenizer, ScriptedEngine, fake_logprob
from icrl.testing.conformance import CHECKS, Subject
from icrl.trajectory import VersionSpan

pytestmark = pytest.mark.learning  # of the checks, not of the engines: these run with what takes long

BY_NAME = {check.__name__: check for check in CHECKS}
ENDING = b"end"


def script(ids):
    return "bye" if bytes(ids) == ENDING else Babble(length=100)(ids)


class Engine(ScriptedEngine):
    """Scripted, with a cache, and with one thing wrong."""

    def __init__(self, wrong):
        super().__init__(script, latency_s=0.2)
        self.wrong = wrong
        self.known = self.answered = 0

    @property
    def info(self):
        info = super().info
        return replace(info, capabilities=info.capabilities | {"prefix_cache"})

    async def generate(self, ids, params, *, request_id, on_delta=None, **more):
        if self.wrong == "survives nothing" and not len(ids):
            self.closed = True
        if self.wrong == "takes any id":
            ids = [i if 0 <= i < 259 else 0 for i in ids]
        if self.wrong == "takes any name":
            request_id = object()
        if self.wrong == "deaf":
            on_delta = on_delta and (lambda new: None)
        if self.wrong == "stutters":
            tell = on_delta
            on_delta = tell and (lambda new: tell([*new, *new]))
        if self.wrong == "overlong":
            params = replace(params, max_tokens=params.max_tokens + 1)
        if self.wrong == "forgets to stop":
            params = replace(params, stop=())
        if self.wrong == "swallows cancellation":
            return await self._swallow(super().generate(ids, params, request_id=request_id, on_delta=on_delta))
        reply = await super().generate(ids, params, request_id=request_id, on_delta=on_delta)
        return self._spoil(replace(reply, cached_tokens=self._cached(len(ids), len(reply.ids))))

    async def _swallow(self, call):
        task = asyncio.ensure_future(call)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            await self.abort("long")
            return await task

    def _cached(self, prompt, sampled):
        cached, self.known = min(self.known, prompt - 1), prompt + sampled - 1
        return 0 if self.wrong == "has no cache" else cached

    def _spoil(self, reply):
        if self.wrong == "drops the last token" and reply.finish_reason in ("stop", "eos"):
            return replace(reply, ids=reply.ids[:-1], logprobs=reply.logprobs[:-1])
        if self.wrong == "misnames ends":
            return replace(reply, finish_reason="length" if reply.finish_reason != "length" else "stop")
        if self.wrong == "forgets versions":
            return replace(reply, versions=(VersionSpan(version=0, start=0, end=len(reply.ids)),))
        if self.wrong == "shifts logprobs":
            return replace(reply, logprobs=(*reply.logprobs[1:], -1.0))
        self.answered += 1
        if self.wrong == "moods" and self.answered % 2 == 0:
            return replace(reply, ids=tuple(reversed(reply.ids)))
        return reply

    async def abort(self, request_id):
        if self.wrong != "cannot abort":
            await super().abort(request_id)

    async def aclose(self):
        if self.wrong != "closes deaf":
            await super().aclose()

    async def update(self, weights, version):
        await super().update(weights, version)
        if self.wrong != "keeps the cache":
            self.known = 0

    async def pause(self, mode="in_place"):
        if self.wrong != "never pauses":
            await super().pause(mode)


def logprobs(prompt, ids, temperature):
    return [fake_logprob(token, position) for position, token in enumerate(ids, len(prompt))]


def opened(wrong):
    @asynccontextmanager
    async def open_subject():
        engine = Engine(wrong)
        yield Subject(
            engine=engine,
            tokenizer=ByteTokenizer(),
            prompt=b"once upon a time",
            ending=ENDING,
            long_tokens=60,
            logprobs=logprobs,
            weights=tuple,
        )
        await ScriptedEngine.aclose(engine)

    return open_subject


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_an_engine_without_a_fault_passes(check):
    await check(opened(""))


@pytest.mark.parametrize(
    ("wrong", "check"),
    [
        ("drops the last token", "stop_strings_inside_tokens"),
        ("forgets to stop", "stop_strings_over_tokens"),
        ("misnames ends", "stop_strings_over_tokens"),
        ("drops the last token", "end_tokens_are_kept"),
        ("overlong", "budgets_are_kept"),
        ("takes any id", "bad_requests_are_refused"),
        ("survives nothing", "bad_requests_are_refused"),
        ("stutters", "deltas_are_the_tokens"),
        ("moods", "resumed_is_uninterrupted"),
        ("moods", "company_changes_nothing"),
        ("shifts logprobs", "logprobs_are_those_of_a_full_pass"),
        ("has no cache", "prefixes_are_reused"),
        ("cannot abort", "aborting_returns_what_there_is"),
        ("swallows cancellation", "cancelling_leaves_nothing"),
        ("takes any name", "names_are_unique"),
        ("closes deaf", "closing_returns_what_there_is"),
        ("forgets versions", "updates_split_the_versions"),
        ("never pauses", "pausing_can_abort"),
        ("keeps the cache", "updates_drop_what_is_cached"),
    ],
)
async def test_an_engine_that_breaks_a_law_is_seen(wrong, check):
    with pytest.raises((AssertionError, EngineError)):
        await BY_NAME[check](opened(wrong))


def test_every_check_has_a_mutant():
    (mark,) = test_an_engine_that_breaks_a_law_is_seen.pytestmark
    assert {check for _, check in mark.args[1]} == set(BY_NAME)


async def test_checks_that_do_not_apply_are_skipped():
    class Bare(ScriptedEngine):
        @property
        def info(self):
            return replace(super().info, capabilities=frozenset())

    @asynccontextmanager
    async def bare():
        engine = Bare(script)
        yield Subject(engine=engine, tokenizer=ByteTokenizer(), prompt=b"once", ending=ENDING, exact=False)

    skipped = set()
    for name, check in BY_NAME.items():
        try:
            await check(bare)
        except SkipTest:
            skipped.add(name)
    assert len(skipped) == 12
