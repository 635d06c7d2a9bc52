"""What transports make of tensors, and what is compared before and after: without a server."""

import asyncio
import base64
import hashlib
import itertools
import json
import pickle
import re
import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from icrl.errors import EngineError, WeightSyncError
from icrl.runtime.engines.sglang.checksums import Checksums
from icrl.runtime.engines.sglang.manifest import Manifest, check_fit, find_checkpoint, read_manifest
from icrl.runtime.engines.sglang.transports import group
from icrl.runtime.engines.sglang.transports.disk import DiskTransport, write_checkpoint
from icrl.runtime.engines.sglang.transports.group import GroupTransport, _own_address
from icrl.runtime.engines.sglang.transports.link import Link, buckets, in_thread
from icrl.runtime.engines.sglang.transports.tensor import _compact, _pickled
from icrl.tiny import BASE_DIR


def tensors(*sizes):
    return [(f"t{i}", torch.arange(size, dtype=torch.float32)) for i, size in enumerate(sizes)]


@given(st.lists(st.integers(0, 40), min_size=1, max_size=12), st.integers(1, 200))
def test_buckets_keep_the_order_and_the_bound_and_mark_the_last(sizes, limit):
    cut = list(buckets(tensors(*sizes), limit))
    assert [name for bucket, _ in cut for name, _ in bucket] == [f"t{i}" for i in range(len(sizes))]
    assert [last for _, last in cut] == [False] * (len(cut) - 1) + [True]
    assert all(len(bucket) == 1 or sum(t.nbytes for _, t in bucket) <= limit for bucket, _ in cut)


def test_no_tensors_make_no_bucket():
    assert list(buckets([])) == []


async def test_a_cancelled_caller_waits_for_its_thread():
    import threading

    entered, leave, left = asyncio.Event(), threading.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def work():
        loop.call_soon_threadsafe(entered.set)
        leave.wait(5)
        left.set()

    task = asyncio.create_task(in_thread(work))
    await entered.wait()
    task.cancel()
    loop.call_later(0.01, leave.set)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert left.is_set()


def test_a_checkpoint_is_written_in_files_with_an_index_and_the_models_settings(tmp_path, monkeypatch):
    monkeypatch.setattr("icrl.runtime.engines.sglang.transports.link.buckets.__defaults__", (40,))
    write_checkpoint(tmp_path, iter(tensors(8, 4, 2)), BASE_DIR)
    listing = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert listing["metadata"]["total_size"] == 14 * 4
    assert len(set(listing["weight_map"].values())) == 2
    for name, file in listing["weight_map"].items():
        assert torch.equal(load_file(tmp_path / file)[name], dict(tensors(8, 4, 2))[name])
    assert (tmp_path / "config.json").read_bytes() == (BASE_DIR / "config.json").read_bytes()
    manifest = read_manifest(tmp_path)
    assert manifest is not None
    assert manifest.shapes == {"t0": (8,), "t1": (4,), "t2": (2,)}


def test_slices_of_one_tensor_are_sent_without_the_rest():
    whole = torch.arange(1000.0)
    (sent,) = _pickled([("slice", _compact(whole[:10]))], ranks=1)
    assert len(sent) < 1200
    ((name, tensor),) = pickle.loads(base64.b64decode(sent))
    assert name == "slice"
    assert torch.equal(tensor, whole[:10])


def test_every_process_of_a_server_gets_a_payload():
    assert len(_pickled(tensors(3), ranks=4)) == 4


def test_a_server_on_this_machine_finds_us_here():
    assert _own_address("http://127.0.0.1:9") == "127.0.0.1"


class Peer:
    """A server that meets us in a process group, in a thread of its own, and refuses what it is told to."""

    address = "http://127.0.0.1:9"

    def __init__(self, refuses):
        self.refuses = refuses
        self.groups = set()
        self.asked = []
        self.announced = asyncio.Event()

    async def post(self, path, payload, *, timeout_s):
        self.asked.append(path)
        if path == self.refuses:
            raise EngineError("no", engine=self.address)
        if path == "/init_weights_update_group":
            self.group = await asyncio.to_thread(self.join, payload)
            self.groups.add(payload["group_name"])
        elif path == "/destroy_weights_update_group":
            self.groups.discard(payload["group_name"])
            self.group = None
        elif path == "/update_weights_from_distributed":
            self.received = asyncio.ensure_future(asyncio.to_thread(self.receive, self.group, payload["shapes"]))
            self.announced.set()
            await asyncio.shield(self.received)
        return b""

    @staticmethod
    def receive(group, shapes):
        """Wait for tensors as a server's scheduler does; say whether they came, or that the other side has left."""
        options = dist.BroadcastOptions()
        options.rootRank = 0
        try:
            for shape in shapes:
                group.broadcast([torch.empty(shape)], options).wait(timedelta(seconds=60))
        except RuntimeError as error:
            return re.search("closed by peer|reset by peer|Broken pipe", str(error)) is None
        return True

    @staticmethod
    def join(payload):
        store = dist.TCPStore(payload["master_address"], payload["master_port"], 2, is_master=False)
        name = payload["group_name"]
        for prefix in (name, f"{name}/", "cpu/"):  # ours, and torch's two
            store = dist.PrefixStore(prefix, store)
        return dist.ProcessGroupGloo(store, 1, 2, timedelta(seconds=5))


@pytest.mark.parametrize("refuses", ["/init_weights_update_group", "/update_weights_from_distributed"])
async def test_a_meeting_that_the_server_refuses_leaves_no_thread_and_no_group(refuses):
    """A thread that reads the trainer's tensors for another ten minutes would keep the program from ending, too."""
    peer = Peer(refuses)
    transport = GroupTransport(Link(client=peer, transport="distributed", timeout_s=30, ranks=1, device="cpu"))
    before = {*torch.distributed.distributed_c10d._world.pg_map}
    with pytest.raises(EngineError, match="no"):
        await transport.send(iter(tensors(10**6)), "1")
    await asyncio.wait_for(asyncio.get_running_loop().shutdown_default_executor(), 5)
    assert {*torch.distributed.distributed_c10d._world.pg_map} == before
    await transport.aclose()
    assert peer.groups == set()
    assert peer.asked[-1] == "/destroy_weights_update_group"


@pytest.mark.parametrize("fails", [True, False], ids=["fails here", "is cancelled"])
async def test_a_server_never_waits_for_tensors_that_do_not_come(monkeypatch, fails):
    """It would neither go on nor answer; a group that nobody has left ends with the program only."""
    peer = Peer(None)
    transport = GroupTransport(Link(client=peer, transport="distributed", timeout_s=30, ranks=1, device="cpu"))
    await transport.send(iter(tensors(4)), "1")
    peer.announced.clear()
    if fails:
        monkeypatch.setattr(group, "_broadcast", lambda *_: [][0])
    task = asyncio.create_task(transport.send(iter(tensors(4)), "2"))
    await peer.announced.wait()
    if not fails:
        task.cancel()
    with pytest.raises(IndexError if fails else asyncio.CancelledError) as kept:
        await task
    assert await asyncio.wait_for(peer.received, 30) is not fails
    del kept  # until here, with all of its frames
    await transport.aclose()


async def test_a_cancelled_update_from_disk_stops_writing_and_leaves_nothing(tmp_path):
    entered, written = asyncio.Event(), []
    loop = asyncio.get_running_loop()

    def endless():
        for index in itertools.count():
            written.append(index)
            loop.call_soon_threadsafe(entered.set)
            time.sleep(0.001)
            yield f"t{index}", torch.zeros(4)

    transport = DiskTransport(Link(client=None, transport="disk", timeout_s=60, directory=tmp_path))
    task = asyncio.create_task(transport.send(endless(), "1"))
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 5)
    count = len(written)
    assert list(tmp_path.iterdir()) == []
    await asyncio.sleep(0.02)
    assert len(written) == count


def sha(*parts, dtype=torch.float32):
    data = b"".join(part.to(dtype).contiguous().view(torch.uint8).numpy().tobytes() for part in parts)
    return hashlib.sha256(data).digest()[:8].hex()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_fused_and_padded_parameters_are_compared_in_the_servers_precision(dtype):
    q, k, v = torch.randn(4, 3), torch.randn(2, 3), torch.randn(2, 3)
    up, gate, table = torch.randn(5, 3), torch.randn(5, 3), torch.randn(70, 3)
    sent = {
        "l.attn.v_proj.weight": v,
        "l.attn.q_proj.weight": q,
        "l.attn.k_proj.weight": k,
        "l.mlp.up_proj.weight": up,
        "l.mlp.gate_proj.weight": gate,
        "embed_tokens.weight": table,
    }
    server = {
        "l.attn.qkv_proj.weight": sha(q, k, v, dtype=dtype),
        "l.mlp.gate_up_proj.weight": sha(gate, up, dtype=dtype),
        "embed_tokens.weight": sha(table, torch.zeros(58, 3), dtype=dtype),
    }
    sums = Checksums()
    assert dict(sums.watch(iter(sent.items()))) == sent
    sums.compare(server)
    with pytest.raises(WeightSyncError, match=r"gate_up_proj\.weight is not what was sent \(1 of 3"):
        sums.compare(server | {"l.mlp.gate_up_proj.weight": sha(up, gate, dtype=dtype)})
    with pytest.raises(WeightSyncError, match="names no checksums"):
        sums.compare({})
    with pytest.raises(WeightSyncError, match=r"experts\.w13 .* none of the tensors"):
        sums.compare({"experts.w13": "0"})


def test_the_embedded_model_is_known_by_its_headers():
    manifest = read_manifest(BASE_DIR)
    assert manifest is not None
    assert manifest.shapes["model.embed_tokens.weight"] == (2078, 128)
    assert manifest.optional == {"lm_head.weight"}
    assert find_checkpoint("no/such", str(BASE_DIR)) == BASE_DIR


def test_a_tied_head_may_come_too_or_not():
    shapes = {"embed": (2, 2)}
    manifest = Manifest(shapes=shapes, optional=frozenset({"lm_head.weight"}))
    check_fit({"embed": torch.zeros(2, 2)}, manifest)
    check_fit({"embed": torch.zeros(2, 2), "lm_head.weight": torch.zeros(2, 2)}, manifest)
    with pytest.raises(WeightSyncError, match=r"no weight 'lm_head\.weight'"):
        check_fit({"embed": torch.zeros(2, 2), "lm_head.weight": torch.zeros(2, 2)}, Manifest(shapes=shapes))


def test_a_directory_without_weights_is_no_measure_and_a_broken_file_is_named(tmp_path):
    assert read_manifest(tmp_path) is None
    (tmp_path / "model.safetensors").write_bytes(b"\xff")
    with pytest.raises(WeightSyncError, match=r"model\.safetensors is not a safetensors file"):
        read_manifest(tmp_path)
