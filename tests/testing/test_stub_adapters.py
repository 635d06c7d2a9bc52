"""LoRA adapters at the stub behave as the real server's: bounded, reloaded when named, kept while they are used."""

import asyncio

import aiohttp
import pytest

from icrl.testing import Capacity, SGLangStub


@pytest.fixture
async def client():
    async with aiohttp.ClientSession() as session:
        yield session


async def ask(client, stub, path, **body):
    async with client.post(stub.address + path, json=body) as reply:
        return reply.status, await reply.json()


async def load(client, stub, directory, name):
    return await ask(client, stub, "/load_lora_adapter", lora_name=name, lora_path=str(directory))


async def say(client, stub, name, rid="t/0"):
    status, said = await ask(client, stub, "/generate", input_ids=[1, 2], rid=rid, lora_path=name)
    return status, said["error"]["message"] if status != 200 else said["text"]


@pytest.fixture
def adapter(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"target_modules": ["o_proj"]}')
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    return tmp_path


async def test_adapters_are_loaded_named_and_unloaded(client, adapter):
    async with SGLangStub(["said", "again"], loras=2) as stub:
        status, answer = await load(client, stub, adapter, "a")
        assert (status, answer["success"], answer["loaded_adapters"]) == (200, True, {"a": str(adapter)})
        status, answer = await load(client, stub, adapter, "a")
        assert (status, answer["error_message"].endswith("already loaded")) == (400, True)
        assert await say(client, stub, "a") == (200, "said")
        assert stub.requests[0].adapter == "a"
        assert (await say(client, stub, "b"))[0] == 400
        assert (await ask(client, stub, "/unload_lora_adapter", lora_name="a"))[0] == 200
        assert "does not exist" in (await ask(client, stub, "/unload_lora_adapter", lora_name="a"))[1]["error_message"]
        assert stub.adapters.loaded == {}
        assert await say(client, stub, "a", "t/1") == (200, "again")  # whoever names it gets it back
        assert [*stub.adapters.loaded] == ["a"]
        await ask(client, stub, "/unload_lora_adapter", lora_name="a")
        (adapter / "adapter_config.json").unlink()
        status, message = await say(client, stub, "a", "t/2")
        assert (status, message.startswith("Failed to implicitly load LoRA adapter a")) == (400, True)


async def test_the_least_recently_used_goes_once_nobody_uses_it(client, adapter):
    slow = Capacity(tokens_per_s_per_request=200)
    async with SGLangStub(lambda ids: [97] * 20, loras=1, capacity=slow) as stub:
        await load(client, stub, adapter, "a")
        using = asyncio.create_task(say(client, stub, "a"))
        while not stub.live:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        loading = asyncio.create_task(load(client, stub, adapter, "b"))
        await asyncio.wait([using, loading], return_when=asyncio.FIRST_COMPLETED)
        assert using.done()
        assert (await loading)[0] == 200
        assert [*stub.adapters.loaded] == ["b"]


async def test_a_server_without_lora_says_so(client, adapter):
    async with SGLangStub(["x"]) as stub:
        assert "Please set `--enable-lora`" in (await load(client, stub, adapter, "a"))[1]["error_message"]
        assert "but LoRA is not enabled" in (await say(client, stub, "a"))[1]
