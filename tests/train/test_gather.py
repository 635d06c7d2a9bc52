"""Whole tensors from plain, adapted and sharded models, in the order and under the names that engines expect."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from icrl.errors import WeightSyncError
from icrl.testing import ScriptedEngine
from icrl.train.gather import Weights, gathered, is_sharded, unwrapped
from icrl.train.sync import merged_weights, push

# peft asks transformers for an attribute under its old name.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")

WORKER = Path(__file__).with_name("sharded_push.py")


def model(**changes):
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_key_value_heads": 2}
    return Qwen2ForCausalLM(Qwen2Config(vocab_size=101, num_hidden_layers=1, **{**sizes, **changes}))


@pytest.mark.learning
@pytest.mark.timeout(100)
def test_two_processes_with_a_sharded_model_send_what_one_would(tmp_path):
    outs = [tmp_path / f"{rank}.json" for rank in range(2)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    processes = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(rank), str(tmp_path / "store"), str(outs[rank])],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=90)[0].decode() for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(said)
    first, second = (json.loads(out.read_text()) for out in outs)
    assert first["sharded"]
    assert first["names"]
    assert first["distance"] <= 1e-6
    assert first["twin"]
    assert first["calls"] == first["failed_calls"] == ["pause", "update", "resume"]
    assert first["error"] is None
    assert first["failure"] == "no room"
    assert second["error"] is None
    assert second["failure"] == "process 0: no room"
    assert first["followed"] == [None, "no room"]
    assert second["followed"] == ["row"]


def test_tied_weights_come_once_and_buffers_do_not():
    tied, untied = model(tie_word_embeddings=True), model(tie_word_embeddings=False)
    tied.register_buffer("counter", torch.zeros(1))
    names = [name for name, _ in Weights(tied)]
    assert "model.embed_tokens.weight" in names
    assert not {"lm_head.weight", "counter"} & set(names)
    assert "lm_head.weight" in dict(Weights(untied))


def test_the_layout_is_that_of_what_comes():
    weights = Weights(model())
    layout = weights.layout
    assert {name: (t.shape, t.dtype) for name, t in layout.items()} == {n: (t.shape, t.dtype) for n, t in weights}
    assert all(tensor.is_meta for tensor in layout.values())


def test_weights_are_iterated_over_once():
    weights = Weights(torch.nn.Linear(2, 2))
    assert next(iter(weights))[0] == "weight"
    weights.drain()
    assert list(weights) == []


def test_plain_models_are_neither_wrapped_nor_sharded():
    plain = model()
    assert unwrapped(plain) is plain
    assert not is_sharded(plain)
    with gathered(plain, all_at_once=True):
        assert dict(Weights(plain))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")
def test_compiled_models_are_unwrapped():
    plain = torch.nn.Linear(2, 2)
    assert unwrapped(torch.compile(plain)) is plain


def adapted(**changes):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    config = LoraConfig(**{"r": 2, "target_modules": ["q_proj"], "init_lora_weights": False, **changes})
    return get_peft_model(model(), config)


def test_adapters_are_merged_and_taken_out_again():
    network = adapted()
    name = "model.layers.0.self_attn.q_proj.weight"
    before = network.get_base_model().get_submodule("model.layers.0.self_attn.q_proj").base_layer.weight.clone()
    with merged_weights(network) as weights:
        sent = {key: tensor.clone() for key, tensor in weights}
    assert set(sent) == set(dict(model().named_parameters()))
    assert not torch.equal(sent[name], before)
    after = network.get_base_model().get_submodule("model.layers.0.self_attn.q_proj").base_layer.weight
    assert torch.allclose(after, before, atol=1e-6)


def test_layers_that_are_trained_whole_beside_adapters_come_in_place_of_the_original():
    network = adapted(modules_to_save=["norm"])
    with torch.no_grad():
        network.get_base_model().model.norm.modules_to_save["default"].weight.fill_(3.0)
    with merged_weights(network) as weights:
        sent = dict(weights)
    assert set(sent) == set(dict(model().named_parameters()))
    assert sent["model.norm.weight"].eq(3.0).all()


def test_an_adapter_that_cannot_be_merged_says_so(monkeypatch):
    network = adapted()

    def refuse():
        raise NotImplementedError("quantised")

    monkeypatch.setattr(network.base_model, "merge_adapter", refuse)
    with pytest.raises(WeightSyncError, match="cannot be merged: quantised"), merged_weights(network):
        pass


def test_a_merge_that_fails_half_way_is_taken_back(monkeypatch):
    """Otherwise the trainer would go on with some adapters counted twice."""
    network = adapted(target_modules=["q_proj", "v_proj"])
    before = {name: parameter.clone() for name, parameter in network.named_parameters()}
    last = [module for module in network.modules() if hasattr(module, "lora_A") and hasattr(module, "merge")][-1]

    def refuse(*args, **kwargs):
        raise ValueError("not finite")

    monkeypatch.setattr(last, "merge", refuse)
    with pytest.raises(WeightSyncError, match="cannot be merged: not finite"), merged_weights(network):
        pass
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(parameter, before[name])


class Refusing(ScriptedEngine):
    """Takes no weights."""

    async def update(self, weights, version):
        raise WeightSyncError("no")


async def test_an_engine_that_refuses_goes_on_with_what_it_has():
    engine = Refusing(["a"], weight_version=4)
    with pytest.raises(WeightSyncError, match="no"):
        await push(engine, torch.nn.Linear(2, 2), 5)
    assert engine._running.is_set()
    assert engine.info.weight_version == 4


class Deaf(Refusing):
    """Cannot be resumed either."""

    async def resume(self):
        raise WeightSyncError("still paused")


async def test_an_engine_that_cannot_be_resumed_either_says_both():
    with pytest.raises(WeightSyncError, match="no") as caught:
        await push(Deaf(["a"]), torch.nn.Linear(2, 2), 5)
    assert caught.value.__notes__ == ["Nor could it be resumed: still paused"]


class Slow(ScriptedEngine):
    """Never has done with its update."""

    async def update(self, weights, version):
        self.entered.set()
        await asyncio.Event().wait()


async def test_a_cancelled_push_resumes_the_engine():
    engine = Slow(["a"])
    engine.entered = asyncio.Event()
    task = asyncio.create_task(push(engine, torch.nn.Linear(2, 2), 1))
    await engine.entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert engine._running.is_set()


async def test_a_push_without_an_engine_only_takes_part():
    await push(None, torch.nn.Linear(2, 2), 1)
