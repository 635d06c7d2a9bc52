"""One list of laws for all engines; the real server is examined in tests/sglang."""

import asyncio
from contextlib import AsyncExitStack, aclosing, asynccontextmanager

import pytest
from chat_endpoint import ChatEndpoint, chat_endpoint
from examined import WORDS, base_subject, base_weights, no_change

from icrl.runtime.engines.local import LocalEngine, LocalEngineConfig
from icrl.runtime.engines.openai import OpenAIEngine
from icrl.runtime.engines.pool import EnginePool
from icrl.runtime.engines.sglang.engine import SGLangEngine
from icrl.testing import Babble, ByteTokenizer, Capacity, ScriptedEngine, SGLangStub, fake_logprob
from icrl.testing.conformance import CHECKS, Subject
from icrl.tiny import BASE_DIR
from icrl.types import Message

ENDING = b"that is all"
SPEED = Capacity(tokens_per_s_per_request=500)


def script_of(tokenizer, babble):
    """Babble, but for a prompt after which everything is said."""
    ending = tokenizer.encode(ENDING.decode())
    return lambda ids: "bye" if list(ids) == ending else babble(ids)


def reported(prompt, ids, temperature):
    return [fake_logprob(token, position) for position, token in enumerate(ids, len(prompt))]


@asynccontextmanager
async def scripted():
    engine = ScriptedEngine(script_of(ByteTokenizer(), Babble(length=200)), latency_s=0.15)
    async with aclosing(engine):
        yield Subject(
            engine=engine,
            tokenizer=engine.tokenizer,
            prompt=b"once upon a time",
            ending=ENDING,
            logprobs=reported,
            weights=tuple,
        )


@asynccontextmanager
async def stubs(count, *, incremental=False, version="0.5.23", pooled=False, adapters="merged"):
    def open_stub():
        babble = Babble(ids=range(300, 1300), length=400)
        return SGLangStub(
            script_of(WORDS, babble),
            tokenizer=WORDS,
            version=version,
            capacity=SPEED,
            incremental=incremental,
            context_limit=2048,
            model_path=str(BASE_DIR),
            loras=3,
        )

    async with AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(open_stub()) for _ in range(count)]
        engines = [SGLangEngine(server.address, tokenizer=WORDS, adapters=adapters) for server in servers]
        engine = await stack.enter_async_context(aclosing(EnginePool(engines) if pooled else engines[0]))
        await engine.start()

        async def live():
            return sum(len(server.live) for server in servers)

        yield Subject(
            engine=engine,
            tokenizer=WORDS,
            prompt=WORDS.encode("The mayor of Rikor is"),
            ending=WORDS.encode(ENDING.decode()),
            logprobs=reported,
            weights=no_change if adapters == "lora" else lambda: base_weights().items(),
            keeps_version=adapters == "lora",
            live=live,
        )
        assert all(server.alive for server in servers)


@asynccontextmanager
async def local():
    engine = LocalEngine(LocalEngineConfig(model=str(BASE_DIR), device="cpu"), tokenizer=WORDS)
    async with aclosing(engine):
        await engine.start()
        yield await asyncio.to_thread(base_subject, engine)


class Talker(ChatEndpoint):
    """Talks slowly and at length, unless everything was said."""

    async def complete(self, request):
        body = await request.json()
        last = body["messages"][-1]["content"]
        babble = "".join(f"{number * number % 97} mayors of Rikor, " for number in range(60))
        self.replies = ["bye" if last == ENDING.decode() else babble]
        return await super().complete(request)

    async def _write(self, stream, reply):
        self.running += 1
        try:
            await super()._write(stream, reply)
        finally:
            self.running -= 1

    running = 0


class Pace(asyncio.Event):
    """Lets a piece through every two milliseconds."""

    async def wait(self):
        await asyncio.sleep(0.002)


@asynccontextmanager
async def openai():
    async with chat_endpoint(kind=Talker) as endpoint:
        endpoint.pause = Pace()
        async with aclosing(OpenAIEngine(endpoint.url, model="large")) as engine:
            words = engine.tokenizer

            def asked(text):
                (rendered,) = words.render([Message(role="user", content=text)])
                return words.encode(rendered)

            async def live():
                return endpoint.running

            yield Subject(
                engine=engine,
                tokenizer=words,
                prompt=asked("Who rules?"),
                ending=asked(ENDING.decode()),
                live=live,
            )


ENGINES = {
    "openai": openai,
    "scripted": scripted,
    "local": local,
    "sglang": lambda: stubs(1),
    "sglang-0.5.19": lambda: stubs(1, version="0.5.19", incremental=True),
    "sglang-lora": lambda: stubs(1, adapters="lora"),
    "pool": lambda: stubs(2, pooled=True),
}


# A text endpoint's ids are made from its text afterwards, whole turns at a time: there are no tokens to be in the
# middle of. What holds of its stop strings and budgets is in test_openai.py.
OF_TOKENS = {
    "stop_strings_inside_tokens",
    "stop_strings_over_tokens",
    "budgets_are_kept",
    "resumed_is_uninterrupted",
}


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", ENGINES)
async def test_engine_conforms(name, check):
    if name == "openai" and check.__name__ in OF_TOKENS:
        pytest.skip("a law of tokens, and the endpoint speaks text")
    await check(ENGINES[name])
