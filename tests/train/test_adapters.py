"""A training run whose adapters go to a server by themselves, over HTTP."""

import asyncio
import itertools
import json
import threading

import pytest
import torch

from icrl.errors import ConfigError, WeightSyncError
from icrl.runtime.engines.sglang import adapters
from icrl.testing import SGLangStub
from icrl.tiny import BASE_DIR
from icrl.tokenizer import ChatTokenizer
from icrl.train.__main__ import main as train
from icrl.train.config import LoraConfig, SyncConfig, TrainConfig

ARGUMENTS = [
    "--rollout.prompts=2",
    "--rollout.group-size=2",
    "--limits.max-tokens=24",
    "--evaluation.tasks=2",
    "--evaluation.every-steps=0",
    "--schedule=3:2",
    "--reward=paid_for_answers:answered",
    "--optimizer.learning-rate=1e-2",
    "--lora.rank=2",
    "--lora.targets",
    "q_proj",
    "v_proj",
    "--sync.adapters=lora",
    "--sync.max-logprob-gap=None",  # what the stub says has nothing to do with any weights
]


@pytest.fixture
def loras():
    """Adapters that the stub holds."""
    return 2


@pytest.fixture
def stub(loras):
    """A stub on a thread of its own, that answers every other time."""
    replies = itertools.cycle(["<answer> red </answer>", "red"])
    tokenizer = ChatTokenizer.load(BASE_DIR)
    stub = SGLangStub(lambda ids: next(replies), tokenizer=tokenizer, model_path=str(BASE_DIR), loras=loras)
    started, enough = threading.Event(), []

    async def serve():
        async with stub:
            end = asyncio.Event()
            enough.append((asyncio.get_running_loop(), end))
            started.set()
            await end.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert started.wait(30)
    yield stub
    loop, end = enough[0]
    loop.call_soon_threadsafe(end.set)
    thread.join()


@pytest.fixture
def written(monkeypatch):
    """The adapters that were sent."""
    sent = []

    def record(directory, adapter, write=adapters.write_adapter):
        sent.append(adapter)
        write(directory, adapter)

    monkeypatch.setattr(adapters, "write_adapter", record)
    return sent


@pytest.fixture
def run(tmp_path, stub, monkeypatch):
    """Train against it, in the directory `run`; answers are paid for."""
    reward = "def answered(trajectory, task): return float(bool(trajectory.answer))"
    (tmp_path / "paid_for_answers.py").write_text(reward)
    monkeypatch.syspath_prepend(tmp_path)
    return lambda: train([*ARGUMENTS, f"--engine={stub.address}", f"--output-dir={tmp_path / 'run'}"])


def test_every_step_samples_under_the_adapter_of_the_step_before(tmp_path, stub, written, run):
    run()
    loads = [name for what, name in stub.adapters.history if what == "load"]
    assert [name.rpartition("-")[2] for name in loads] == ["v0", "v1", "v2"]
    assert {asked.adapter for asked in stub.requests} == set(loads)
    assert stub.adapters.loaded == {}
    assert "/pause_generation" not in stub.calls
    first, last = written[0].tensors, written[-1].tensors
    assert all(tensor.eq(0).all() for name, tensor in first.items() if "lora_B" in name)
    assert any(not torch.equal(first[name], last[name]) for name in first)
    lines = (tmp_path / "run" / "trajectories.jsonl").read_text().splitlines()
    spans = [
        {span["version"] for segment in trajectory["segments"] for span in segment.get("versions", ())}
        for trajectory in map(json.loads, lines)
    ]
    assert [{0}] * 4 + [{1}] * 4 == spans


def test_a_server_that_takes_no_further_adapter_ends_the_run_and_the_step_is_saved(tmp_path, stub, run, monkeypatch):
    refused = {"success": False, "error_message": "no memory"}
    taken = adapters.ServerAdapters.update

    async def update(self, weights, version):
        if version == 1:
            stub.refuse("/load_lora_adapter", status=400, body=refused, times=1000)
        await taken(self, weights, version)

    monkeypatch.setattr(adapters.ServerAdapters, "update", update)
    with pytest.raises(WeightSyncError, match=r"goes on with version 0: .*no memory"):
        run()
    assert (tmp_path / "run" / "checkpoints" / "checkpoint-1").is_dir()
    assert {asked.adapter.rpartition("-")[2] for asked in stub.requests} == {"v0"}


@pytest.mark.parametrize("loras", [None])
def test_a_server_without_adapters_is_refused_before_the_model_is_loaded(run, monkeypatch):
    monkeypatch.setattr("icrl.train.session.build_trainer", None)
    with pytest.raises(ConfigError, match="takes no adapters; start it with `icrl sglang --lora-rank RANK`"):
        run()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora": LoraConfig()}, "give one a rank"),
        ({"engine": "local"}, r"lora needs SGLang servers, .* not local"),
        ({"engine": "router:http://127.0.0.1:30000"}, "lora needs SGLang servers"),
        ({"lora": LoraConfig(rank=4, targets=("q_proj",))}, "a server takes q_proj only together with"),
    ],
)
def test_what_cannot_be_sent_by_itself_is_a_wrong_setting(changes, message):
    settings = {"engine": "sglang", "lora": LoraConfig(rank=4), "sync": SyncConfig(adapters="lora")}
    TrainConfig(**settings)
    with pytest.raises(ConfigError, match=message):
        TrainConfig(**{**settings, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"transport": "distributed"}, "adapters travel as files"), ({"verify": True}, "no checksums")],
)
def test_adapters_travel_as_files_and_are_not_verified(changes, message):
    with pytest.raises(ConfigError, match=message):
        SyncConfig(adapters="lora", **changes)
