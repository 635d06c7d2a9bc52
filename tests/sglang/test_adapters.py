"""LoRA adapters in a real server: what it samples with each, beside each other, and when they leave."""

import asyncio
import json
from contextlib import aclosing, asynccontextmanager

import pytest
import torch
from examined import WORDS, base_subject, no_change
from forward_pass import ROUNDING, distance
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from icrl.errors import WeightSyncError
from icrl.runtime.engines.protocol import LostRequest
from icrl.runtime.engines.sglang.engine import SGLangEngine
from icrl.testing.conformance import CHECKS
from icrl.tiny import BASE_DIR
from icrl.train.sync import push
from icrl.types import SamplingParams

pytestmark = [
    pytest.mark.sglang,
    # peft asks transformers for an attribute under its old name.
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),
]

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
PROMPT = [5, 9, *range(100, 160)]


@pytest.fixture(scope="module")
def served(sglang_factory):
    server = sglang_factory(lora_rank=16, lora_targets=TARGETS, extra=("--max-loras-per-batch", "3"))
    yield server
    server.stop()


@pytest.fixture
async def engine(served, tmp_path):
    engine = SGLangEngine(served.address, directory=tmp_path, adapters="lora")
    await engine.start()
    yield engine
    await engine.aclose()
    assert [*tmp_path.iterdir()] == []


def adapted(seed, targets=TARGETS[:4], rank=8):
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(BASE_DIR, dtype=torch.float32)
    config = LoraConfig(r=rank, lora_alpha=16.0, target_modules=list(targets), init_lora_weights=False)
    return get_peft_model(model, config).eval()


async def ask(engine, name, tokens=16, **options):
    return await engine.generate(PROMPT, SamplingParams(max_tokens=tokens), request_id=name, **options)


async def loaded(engine):
    models = json.loads(await engine.client.get("/v1/models", timeout_s=10))["data"]
    return [model["id"] for model in models if model["parent"] is not None]


async def until(condition):
    async with asyncio.timeout(30):
        while not await condition():  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def test_each_version_samples_what_its_adapter_says_beside_the_others(engine):
    models = {}
    long = []
    for version, targets in enumerate((TARGETS[:4], ("q_proj", "v_proj"), TARGETS), start=1):
        models[version] = adapted(version, targets)
        await push(engine, models[version], version, adapters="lora")
        short = await ask(engine, f"short {version}")
        again = await ask(engine, f"again {version}")
        assert again.cached_tokens == len(PROMPT) - 1
        for reply in (short, again):
            assert [span.version for span in reply.versions] == [version]
            assert distance(models[version], PROMPT, reply) <= ROUNDING
        started = asyncio.Event()
        task = asyncio.create_task(
            ask(engine, f"long {version}", tokens=300, on_delta=lambda ids, started=started: started.set())
        )
        await started.wait()
        long.append(task)
    for version, reply in enumerate(await asyncio.gather(*long), start=1):
        assert [span.version for span in reply.versions] == [version]
        apart = {other: distance(model, PROMPT, reply) for other, model in models.items()}
        assert apart.pop(version) <= ROUNDING
        assert min(apart.values()) > 1000 * ROUNDING

    async def alone():
        return [*await loaded(engine)] == [*engine._adapters.loaded][-1:]

    await until(alone)


async def test_what_the_server_refuses_leaves_the_version_before(engine):
    model = adapted(1)
    await push(engine, model, 1, adapters="lora")
    with pytest.raises(WeightSyncError, match=r"goes on with version 1: .*rank 32 is incompatible"):
        await push(engine, adapted(2, rank=32), 2, adapters="lora")
    with pytest.raises(WeightSyncError, match=r"goes on with version 1: .*k_proj only together"):
        await push(engine, adapted(2, ("k_proj",)), 2, adapters="lora")
    assert distance(model, PROMPT, await ask(engine, "r")) <= ROUNDING
    assert len(await loaded(engine)) == 1


async def test_an_adapter_that_is_gone_is_noticed(engine):
    await push(engine, adapted(1), 1, adapters="lora")
    name = engine._adapters.loaded[0]
    await engine.client.post("/unload_lora_adapter", {"lora_name": name}, timeout_s=30)
    engine._adapters._loaded[0].folder.cleanup()  # while it is there, the server would load it again
    with pytest.raises(LostRequest, match="Failed to implicitly load"):
        await ask(engine, "r")
    await engine.start()
    assert engine.info.weight_version == 0
    await push(engine, adapted(1), 1, adapters="lora")
    assert distance(adapted(1), PROMPT, await ask(engine, "r")) <= ROUNDING


@asynccontextmanager
async def connected(address, directory):
    async with (
        aclosing(SGLangEngine(address, tokenizer=WORDS, adapters="lora", directory=directory)) as engine,
        aclosing(SGLangEngine(address, tokenizer=WORDS)) as watcher,
    ):
        await engine.start()
        await watcher.start()

        async def live():
            load = await watcher.probe()
            return load.running + load.waiting

        known = {"live": live, "weights": no_change, "keeps_version": True}
        yield await asyncio.to_thread(lambda: base_subject(engine, **known))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_a_server_with_adapters_conforms(served, tmp_path, check):
    await check(lambda: connected(served.address, tmp_path))
