"""No token drifts: what engines were given and gave is what trajectories hold, over 10,000 adversarial runs."""

from collections import Counter
from contextlib import AsyncExitStack, aclosing

import pytest
from drifting import LIMITS, SAMPLING, Adversary, TrapTool, Witness, exchanges_of, trajectories_of, verify

from icrl.runtime.agent import Agent
from icrl.runtime.engines.local import LocalEngine, LocalEngineConfig
from icrl.runtime.engines.pool import EnginePool
from icrl.runtime.engines.pool_config import PoolConfig
from icrl.runtime.engines.sglang.config import SGLangConfig
from icrl.runtime.engines.sglang.engine import SGLangEngine
from icrl.testing import ByteTokenizer, Faults, ScriptedEngine, SGLangStub
from icrl.tiny import BASE_DIR
from icrl.tokenizer import ChatTokenizer
from icrl.trajectory import StopReason
from icrl.types import SamplingParams

WORDS = ChatTokenizer.load(BASE_DIR)


def agent_on(engine, dialect="xml", **options):
    options = {"sampling": SAMPLING, "limits": LIMITS, **options}
    return Agent(engine, tools=[TrapTool()], dialect=dialect, **options)


def assert_all_of_it_happened(trajectories, sampled, count):
    """The runs were of every kind: several turns, tools, all ways to end but errors."""
    reasons = Counter(trajectory.stop_reason for trajectory in trajectories)
    assert len({trajectory.id for trajectory in trajectories}) == count
    assert reasons[StopReason.ERROR] == 0
    assert min(reasons[reason] for reason in (StopReason.ANSWER, StopReason.MAX_TURNS, StopReason.END_OF_TURN)) > 0
    assert sum(len(trajectory.turns) for trajectory in trajectories) > 1.5 * count
    assert sum(len(trajectory.results) for trajectory in trajectories) > 0.5 * count
    assert sum(sampled) > 20 * count


@pytest.fixture
def tokenizer(request, chat_tokenizer):
    return ByteTokenizer() if request.param == "bytes" else chat_tokenizer(request.param)


KINDS = [("bytes", "xml"), ("bytes", "hermes"), ("tiny", "xml"), ("qwen3", "hermes")]


@pytest.mark.parametrize(
    ("tokenizer", "dialect", "count"),
    [
        *((*kind, 400) for kind in KINDS),
        *(pytest.param(*kind, 2700, marks=pytest.mark.learning) for kind in KINDS),
    ],
    indirect=["tokenizer"],
)
async def test_trajectories_hold_what_the_engine_was_given_and_gave(tokenizer, dialect, count):
    engine = Witness(ScriptedEngine(Adversary(tokenizer, dialect, seed=1), tokenizer=tokenizer))
    trajectories = await trajectories_of(agent_on(engine, dialect), count, name=dialect)
    sampled = [verify(trajectory, engine.exchanges[trajectory.id]) for trajectory in trajectories]
    assert_all_of_it_happened(trajectories, sampled, count)


@pytest.mark.parametrize("incremental", [False, True], ids=["cumulative", "incremental"])
@pytest.mark.parametrize("stream_from", [1, 10_000], ids=["streamed", "whole"])
async def test_nothing_drifts_over_http(stream_from, incremental):
    config = SGLangConfig(stream_from=stream_from, chunk_tokens=4)
    async with SGLangStub(Adversary(WORDS, "xml", seed=2), tokenizer=WORDS, incremental=incremental) as stub:
        async with aclosing(SGLangEngine(stub.address, tokenizer=WORDS, config=config)) as engine:
            await engine.start()
            trajectories = await trajectories_of(agent_on(engine), 150, name="http", at_once=75)
        exchanges = exchanges_of([stub])
        sampled = [verify(trajectory, exchanges[trajectory.id]) for trajectory in trajectories]
    assert_all_of_it_happened(trajectories, sampled, 150)


async def test_nothing_drifts_where_requests_are_lost_and_resumed():
    faults = Faults(error_500=0.05, error_429=0.05, resets=0.05, dies_mid_stream=0.15, truncated=0.05, seed=3)
    config = SGLangConfig(stream_from=1, chunk_tokens=2)
    patience = PoolConfig(first_wait_s=0.001, longest_wait_s=0.01)
    async with AsyncExitStack() as stack:
        stubs = [
            await stack.enter_async_context(
                SGLangStub(Adversary(WORDS, "xml", seed=seed), tokenizer=WORDS, faults=faults)
            )
            for seed in (4, 5)
        ]
        engines = [SGLangEngine(stub.address, tokenizer=WORDS, config=config) for stub in stubs]
        pool = await stack.enter_async_context(aclosing(EnginePool(engines, config=patience)))
        await pool.start()
        trajectories = await trajectories_of(agent_on(pool), 200, name="lost", at_once=50)
        exchanges = exchanges_of(stubs)
        sampled = [verify(trajectory, exchanges[trajectory.id]) for trajectory in trajectories]
    resumed = sum(len(exchanges[t.id]) > len(t.turns) for t in trajectories)
    assert resumed > 50
    assert_all_of_it_happened(trajectories, sampled, 200)


async def test_nothing_drifts_with_a_model():
    model = LocalEngine(LocalEngineConfig(model=str(BASE_DIR), device="cpu"), tokenizer=WORDS)
    await model.start()
    engine = Witness(model)
    agent = agent_on(engine, sampling=SamplingParams(max_tokens=32, temperature=1.5))
    trajectories = await trajectories_of(agent, 64, name="model")
    for trajectory in trajectories:
        verify(trajectory, engine.exchanges[trajectory.id], scripted=False)
    await model.aclose()
    assert sum(trajectory.sampled_tokens for trajectory in trajectories) > 64 * 10


async def test_the_oracle_sees_what_is_wrong():
    engine = Witness(ScriptedEngine(Adversary(WORDS, "xml", seed=6), tokenizer=WORDS))
    trajectories = await trajectories_of(agent_on(engine), 40, name="seen")
    trajectory = next(t for t in trajectories if len(t.turns) > 1 and t.results)
    first, *rest = engine.exchanges[trajectory.id]
    (given, said) = first
    for wrong in ((given[:-1], said), (given, said[:-1]), (given, (*said[:-1], said[-1] + 1)), ((*given, 5), said)):
        with pytest.raises(AssertionError, match=trajectory.id):
            verify(trajectory, [wrong, *rest])
    with pytest.raises(AssertionError, match="the mask is not what was sampled"):
        verify(trajectory, rest)
    assert verify(trajectory, [first, *rest]) == trajectory.sampled_tokens
