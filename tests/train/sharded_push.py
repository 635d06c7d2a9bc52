"""One of two processes that train a sharded model for a step and push it; run by `test_gather.py`."""

import asyncio
import json
import sys
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from transformers import Qwen2Config, Qwen2ForCausalLM

from icrl.errors import WeightSyncError
from icrl.train.following import FollowingSource
from icrl.train.ranks import Ranks
from icrl.train.sync import push


class Sink:
    """Keeps what it is given, or refuses it after the first tensor."""

    def __init__(self, *, refuses=False):
        self.refuses = refuses
        self.calls = []
        self.got = {}

    async def pause(self, mode):
        self.calls.append("pause")

    async def update(self, weights, version):
        self.calls.append("update")
        for name, tensor in weights:
            if self.refuses:
                raise WeightSyncError("no room")
            assert tensor.shape == weights.layout[name].shape
            assert name not in self.got
            self.got[name] = tensor.clone()

    async def resume(self):
        self.calls.append("resume")


def model():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_key_value_heads": 2}
    return Qwen2ForCausalLM(Qwen2Config(vocab_size=101, num_hidden_layers=2, tie_word_embeddings=True, **sizes))


def step(network):
    """Take one step on ids that are the same everywhere, so that averaging gradients changes nothing."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    ids = torch.arange(24).view(2, 12)
    network(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()


def sharded(network):
    mesh = init_device_mesh("cpu", (2,))
    for layer in network.model.layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(network, mesh=mesh)


def pushed(network, rank, **options):
    """Push, and return what the first process's sink got, what it heard, and the error."""
    sink = Sink(**options) if rank == 0 else None
    error = None
    try:
        asyncio.run(push(sink, network, 1))
    except WeightSyncError as caught:
        error = str(caught)
    return (sink.got if sink else {}), (sink.calls if sink else []), error


def followed(network, rank):
    """Push twice as `icrl train` does, the second time in vain, and return what the leader's errors were."""
    ranks = Ranks(rank=rank, world=1)
    ranks.world = 2  # of the group that is open already
    if rank > 0:
        return FollowingSource(ranks, lambda: network).rows(1, network)
    errors = []
    for refuses in (False, True):
        ranks.tell("push", "merged")
        errors.append(pushed(network, rank, refuses=refuses)[2])
    ranks.tell("rows", (["row"], True))
    return errors


def main(rank, store, out):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=timedelta(seconds=30)
    )
    reference, network = model(), sharded(model())
    step(reference)
    step(network)
    whole = {name: parameter.detach() for name, parameter in reference.named_parameters()}
    got, calls, error = pushed(network, rank)
    _, failed_calls, failure = pushed(network, rank, refuses=True)
    twin = DistributedDataParallel(model())
    twin_got, _, _ = pushed(twin, rank)
    result = {
        "names": sorted(got) == sorted(whole),
        "distance": max(((got[n] - whole[n]).abs().max().item() for n in got), default=None),
        "sharded": sum(p.to_local().numel() for p in network.parameters()) < sum(p.numel() for p in whole.values()),
        "calls": calls,
        "error": error,
        "failed_calls": failed_calls,
        "failure": failure,
        "followed": followed(network, rank),
        "twin": sorted(twin_got) == sorted(whole),
    }
    with open(out, "w") as file:
        json.dump(result, file)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3])
