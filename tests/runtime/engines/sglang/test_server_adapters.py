"""LoRA adapters against the stub: what requests name, when adapters leave, and what is known after every failure."""

import asyncio
import json

import pytest
import torch
from peft import LoHaConfig, LoraConfig, PeftModel, get_peft_model
from transformers import Qwen2Config, Qwen2ForCausalLM

from icrl.errors import ConfigError, EngineError, WeightSyncError
from icrl.runtime.engines.adapter import Adapter
from icrl.runtime.engines.address import connect as connect_pool
from icrl.runtime.engines.pool import PoolConfig
from icrl.runtime.engines.protocol import FOREIGN, LostRequest
from icrl.runtime.engines.sglang import adapters as module
from icrl.runtime.engines.sglang.engine import SGLangEngine
from icrl.testing import ByteTokenizer, Capacity, SGLangStub
from icrl.train.adapter import adapter_of
from icrl.train.sync import push
from icrl.types import SamplingParams

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

SLOW = Capacity(tokens_per_s_per_request=100)
LONG = SamplingParams(max_tokens=20_000)
SETTINGS = Qwen2Config(
    vocab_size=32, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2
)


def plain():
    torch.manual_seed(0)
    return Qwen2ForCausalLM(SETTINGS)


def model(targets=("q_proj", "v_proj"), **options):
    config = LoraConfig(**{"r": 2, "target_modules": list(targets), "init_lora_weights": False} | options)
    return get_peft_model(plain(), config)


async def until(condition):
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.002)


@pytest.fixture
async def stub():
    async with SGLangStub(lambda ids: [97] * 5000, loras=3) as stub:
        yield stub


@pytest.fixture
async def engine(stub, tmp_path):
    engine = SGLangEngine(stub.address, tokenizer=ByteTokenizer(), adapters="lora", directory=tmp_path)
    await engine.start()
    stub.calls.clear()
    yield engine
    await engine.aclose()


def send(engine, version, network=None):
    return push(engine, network or model(), version, adapters="lora")


def ask(engine, name, params=SamplingParams(max_tokens=3)):  # noqa: B008
    return engine.generate([1, 2, 3], params, request_id=name)


def versions(reply):
    return [(span.version, span.start, span.end) for span in reply.versions]


async def test_requests_name_the_newest_adapter_and_older_ones_leave_with_their_last_request(engine, stub, tmp_path):
    assert versions(await ask(engine, "plain")) == [(0, 0, 3)]
    assert stub.requests[-1].adapter is None
    stub.capacity = SLOW
    await send(engine, 1)
    assert "/pause_generation" not in stub.calls
    old = asyncio.create_task(ask(engine, "old", LONG))
    await until(lambda: stub.live)
    await send(engine, 2)
    assert engine.info.weight_version == 2
    assert versions(await ask(engine, "new")) == [(2, 0, 3)]
    first, second = (asked.adapter for asked in stub.requests[1:])
    assert [*stub.adapters.loaded] == [first, second]
    assert len([*tmp_path.iterdir()]) == 2
    await engine.abort("old")
    partial = await old
    assert (partial.finish_reason, {span.version for span in partial.versions}) == ("abort", {1})
    await until(lambda: [*stub.adapters.loaded] == [second] and len([*tmp_path.iterdir()]) == 1)
    assert engine.info.weight_version == 2
    assert stub.weight_version == "default"


async def test_keys_and_values_of_adapters_are_apart(engine, stub):
    prompt = [*range(100)]
    cached = []
    for version in (1, 2):
        await send(engine, version)
        for turn in range(2):
            reply = await engine.generate(prompt, SamplingParams(max_tokens=1), request_id=f"{version}/{turn}")
            cached.append(reply.cached_tokens)
    assert cached == [0, 99, 0, 99]


async def test_no_more_are_loaded_than_the_server_holds(engine, stub):
    stub.capacity = SLOW
    asked = []
    for version in range(1, 4):
        await send(engine, version)
        asked.append(asyncio.create_task(ask(engine, f"r{version}", LONG)))
        await until(lambda: len(stub.live) == len(asked))
    waiting = asyncio.create_task(send(engine, 4))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    assert engine.info.weight_version == 3
    await engine.abort("r2")
    await waiting
    assert engine.info.weight_version == 4
    assert len(stub.adapters.loaded) == 3
    assert max_loaded(stub) == 3
    for name in ("r1", "r3"):
        await engine.abort(name)
    replies = await asyncio.gather(*asked)
    assert [{span.version for span in reply.versions} for reply in replies] == [{1}, {2}, {3}]


def max_loaded(stub):
    count = most = 0
    for what, _ in stub.adapters.history:
        count += 1 if what == "load" else -1
        most = max(most, count)
    return most


async def test_an_update_that_finds_no_room_says_who_is_in_the_way(stub, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "RETRY_S", 0.01)
    engine = SGLangEngine(stub.address, tokenizer=ByteTokenizer(), adapters="lora", directory=tmp_path)
    await engine.start()
    await send(engine, 1)
    await send(engine, 2)
    stub.refuse("/unload_lora_adapter", times=1000)
    await until(lambda: len(stub.adapters.loaded) == 1)
    await send(engine, 3)
    await send(engine, 4)
    patience_s, engine._adapters._timeout_s = engine._adapters._timeout_s, 0.05
    with pytest.raises(WeightSyncError, match=r"5 was not loaded; .* goes on with version 4: the server takes 3"):
        await send(engine, 5)
    engine._adapters._timeout_s = patience_s
    assert versions(await ask(engine, "r")) == [(4, 0, 3)]
    stub.refuse("/unload_lora_adapter", times=0)
    await send(engine, 5)
    await until(lambda: len(stub.adapters.loaded) == 1)
    await engine.aclose()
    assert stub.adapters.loaded == {}
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("body", [None, {"success": False, "error_message": "rank 64 is incompatible"}, {"success": 7}])
async def test_a_server_that_refuses_keeps_what_it_had(engine, stub, tmp_path, body):
    await send(engine, 1)
    stub.refuse("/load_lora_adapter", status=400 if body else 500, body=body)
    with pytest.raises(WeightSyncError, match=r"goes on with version 1: .*(rank 64|was to fail|success)"):
        await send(engine, 2)
    assert versions(await ask(engine, "r")) == [(1, 0, 3)]
    await until(lambda: len([*tmp_path.iterdir()]) == 1)  # what was written for the failed one is gone
    await send(engine, 2)
    assert versions(await ask(engine, "r")) == [(2, 0, 3)]


async def test_an_update_that_is_cancelled_leaves_the_version_before_and_nothing_behind(engine, stub, tmp_path):
    await send(engine, 1)
    async with stub.adapters._updating:  # the server takes its time
        task = asyncio.create_task(send(engine, 2))
        await until(lambda: stub.calls.count("/load_lora_adapter") == 2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert versions(await ask(engine, "r")) == [(1, 0, 3)]
    await until(lambda: len(stub.adapters.loaded) == 1 and len([*tmp_path.iterdir()]) == 1)


async def test_a_server_that_was_restarted_never_answers_under_the_adapters_name(engine, stub):
    await send(engine, 1)
    await stub.restart()
    with pytest.raises(LostRequest, match="never been loaded"):
        await ask(engine, "r")
    with pytest.raises(EngineError, match="does not have version 1 any more") as caught:
        await ask(engine, "s")
    assert caught.value.retryable
    with pytest.raises(EngineError, match="does not have version 1"):
        await engine.probe()
    await engine.start()
    assert engine.info.weight_version == 0
    await send(engine, 1)
    assert versions(await ask(engine, "r")) == [(1, 0, 3)]


async def test_a_request_that_cannot_be_written_holds_no_adapter(engine, stub):
    await send(engine, 1)
    with pytest.raises(UnicodeEncodeError):
        await ask(engine, "r", SamplingParams(max_tokens=3, stop=("\ud800",)))
    await send(engine, 2)
    await until(lambda: len(stub.adapters.loaded) == 1)
    assert versions(await ask(engine, "r")) == [(2, 0, 3)]


async def test_weights_that_somebody_else_sends_are_nobodys_version(engine, stub):
    await send(engine, 3)
    stub._sampler.renew("7@5f0c21aa", flush=True)
    with pytest.raises(LostRequest, match="'7@5f0c21aa', which were not sent from here: somebody else") as caught:
        await ask(engine, "r")
    assert versions(caught.value.partial) == [(FOREIGN, 0, 3)]


@pytest.mark.parametrize(
    ("network", "why"),
    [
        (lambda: model(("q_proj",)), "q_proj only together with v_proj"),
        (lambda: model(("k_proj",)), "k_proj only together with q_proj"),
        (lambda: model(("gate_proj", "up_proj"), use_rslora=True), "use_rslora is not known"),
        (lambda: model(("o_proj",), modules_to_save=["lm_head"]), "modules_to_save is not known"),
        (lambda: model(("o_proj",), bias="lora_only"), "biases are not known"),
        (lambda: model(("o_proj",), init_lora_weights="olora"), "init_lora_weights = 'olora' has changed the model"),
        (lambda: get_peft_model(plain(), LoHaConfig(r=2, target_modules=["o_proj"])), "it is no LoRA but LOHA"),
        (plain, "no adapter"),
    ],
)
async def test_what_the_server_would_get_wrong_is_not_sent(engine, stub, network, why):
    with pytest.raises(WeightSyncError, match=why):
        await send(engine, 1, network())
    assert "/load_lora_adapter" not in stub.calls
    assert engine.info.weight_version == 0


async def test_whole_weights_and_adapters_are_not_confused(engine, stub, tmp_path):
    with pytest.raises(WeightSyncError, match="takes adapters only"):
        await push(engine, plain(), 1)
    merged = SGLangEngine(stub.address, tokenizer=ByteTokenizer())
    await merged.start()
    await push(merged, torch.nn.Linear(1, 1), 1)
    with pytest.raises(WeightSyncError, match="lora_A"):
        await push(merged, model(), 2, adapters="lora")
    await merged.aclose()


@pytest.mark.parametrize(
    ("options", "why"),
    [({}, "takes no adapters; start it with `icrl sglang --lora-rank"), ({"loras": 1}, "has room for one adapter")],
)
async def test_servers_that_cannot_are_refused_at_connect(options, why):
    async with SGLangStub(["a"], **options) as stub:
        with pytest.raises(ConfigError, match=why):
            await connect_pool(stub.address, tokenizer=ByteTokenizer(), adapters="lora")


async def test_a_server_with_other_peoples_weights_is_refused(stub):
    stub._sampler.renew("12", flush=True)
    engine = SGLangEngine(stub.address, tokenizer=ByteTokenizer(), adapters="lora")
    with pytest.raises(ConfigError, match="'12', not those that it was started with"):
        await engine.start()
    await engine.aclose()
    with pytest.raises(ConfigError, match="behind a router"):
        await connect_pool(f"router:{stub.address}", tokenizer=ByteTokenizer(), adapters="lora")


async def test_a_pool_uses_no_server_that_misses_the_adapter_and_brings_it_to_one_that_comes_back(stub, tmp_path):
    settings = PoolConfig(probe_every_s=0.02, first_wait_s=0.01)
    async with SGLangStub(lambda ids: [98] * 5000, loras=3) as other:
        addresses = f"{stub.address},{other.address}"
        pool, _ = await connect_pool(
            addresses, tokenizer=ByteTokenizer(), adapters="lora", directory=tmp_path, pool=settings
        )
        other.refuse("/load_lora_adapter", times=2)
        await send(pool, 1)
        replies = [await ask(pool, f"{n}") for n in range(6)]
        assert {versions(reply)[0] for reply in replies} == {(1, 0, 3)}
        assert all(asked.adapter is not None for asked in [*stub.requests, *other.requests])
        await until(lambda: other.adapters.loaded)
        await stub.restart()  # unnoticed, until it is asked
        await asyncio.gather(*(ask(pool, f"again {n}") for n in range(8)))
        await until(lambda: stub.adapters.loaded)
        assert all(asked.adapter is not None for asked in [*stub.requests, *other.requests])
        assert pool.info.weight_version == 1
        await pool.aclose()
    assert [*tmp_path.iterdir()] == []


async def test_whatever_keeps_an_adapter_from_being_written_is_said(engine, monkeypatch, tmp_path):
    def full(directory, adapter):
        raise RuntimeError("no space left")

    await send(engine, 1)
    monkeypatch.setattr(module, "write_adapter", full)
    with pytest.raises(WeightSyncError, match=r"version 2 was not loaded; .* goes on with version 1: no space left"):
        await send(engine, 2)
    assert versions(await ask(engine, "r")) == [(1, 0, 3)]


def test_what_is_written_is_what_peft_reads(tmp_path):
    network = model(("q_proj", "k_proj", "v_proj", "o_proj"), lora_alpha=3)
    module.write_adapter(tmp_path, adapter_of(network))
    again = PeftModel.from_pretrained(plain(), tmp_path)
    ids = torch.arange(6)[None]
    assert torch.equal(again(ids).logits, network(ids).logits)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["peft_type"]) == (2, 3, "LORA")
    assert config["target_modules"] == ["k_proj", "o_proj", "q_proj", "v_proj"]


def test_an_adapter_does_not_change_with_the_trainer():
    network = model()
    adapter = adapter_of(network)
    assert isinstance(adapter, Adapter)
    before = {name: tensor.clone() for name, tensor in adapter}
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(before[name], tensor) for name, tensor in adapter)
