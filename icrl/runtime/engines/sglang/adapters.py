"""LoRA adapters in a server: every version under a name of its own, beside those that requests still use.

An adapter is read from a directory that trainer and server share. Requests say which one they want, so one that is
under way keeps its own, nothing has to pause, and a failed update changes nothing. The server keeps keys and values of
each apart. When a request names one that was unloaded, it loads that again, unasked, if its directory is there; so no
name is used twice, and a directory stays for as long as its name does.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import secrets
from collections.abc import Coroutine, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec

from icrl.errors import ConfigError, EngineError, WeightSyncError
from icrl.runtime.engines.adapter import Adapter
from icrl.runtime.engines.protocol import FOREIGN, PauseMode
from icrl.runtime.engines.sglang.client import Client
from icrl.runtime.engines.sglang.facts import ServerFacts
from icrl.runtime.engines.sglang.versions import UNTOUCHED, Versions
from icrl.runtime.engines.uncancelled import uncancelled

__all__ = ["LoadedAdapter", "ServerAdapters", "write_adapter"]

CONTROL_S = 30.0
"""Deadline of a request that loads nothing."""
PAUSE_S = 60.0
"""Deadline of a pause; one that aborts waits until every request has returned."""
UNLOAD_S = 60.0
"""Deadline of an unload, which waits at the server for requests that nobody waits for any more."""
CLOSE_S = 5.0
"""Seconds in which adapters are unloaded when the engine is closed."""
RETRY_S = 1.0
"""Seconds until an unload that failed is tried again, while an update waits for it."""


class _Settings(msgspec.Struct):
    """Of `/server_info`."""

    enable_lora: bool | None = None
    dp_size: int = 1
    max_loaded_loras: int | None = None
    max_loras_per_batch: int = 8


class _Answer(msgspec.Struct):
    """Of `/load_lora_adapter`."""

    success: bool
    loaded_adapters: dict[str, str]


class _OneVersion(Versions):
    """The versions of a request: its adapter's, as long as the server's own weights are what they were."""

    def __init__(self, version: int) -> None:
        super().__init__(UNTOUCHED)
        self._version = version

    def number(self, name: str) -> int:
        """Return the adapter's version; on weights that somebody else has sent there, it is nobody's."""
        return self._version if name == UNTOUCHED else FOREIGN


@dataclass(slots=True, eq=False, kw_only=True)
class LoadedAdapter:
    """An adapter that the server has, or may have."""

    name: str
    """What requests call it."""
    version: int
    """The version that it is."""
    folder: TemporaryDirectory[str]
    """Where it was read from."""
    versions: Versions
    """Translates what the server calls its weights in a reply of this adapter."""
    users: int = 0
    """Requests that name it."""
    retired: bool = False
    """Whether no further request is to name it."""
    leaving: bool = False
    """Whether it is being unloaded."""


class ServerAdapters:
    """The adapters of one server, as a `WeightSink` that takes an `Adapter` for each version.

    Without one, requests are sampled by the model that the server was started with, as version 0.

    Args:
        client: Leads to the server.
        directory: Where adapters are written, which the server must see under the same path; `None` is the system's
            directory for temporary files.
        timeout_s: Seconds that a load may take, and the wait for room before it.
    """

    def __init__(self, client: Client, *, directory: Path | None = None, timeout_s: float = 600.0) -> None:
        self._client = client
        self._directory = directory
        self._timeout_s = timeout_s
        self._run = secrets.token_hex(4)
        self._numbers = itertools.count(1)
        self._loaded: list[LoadedAdapter] = []
        self._current: LoadedAdapter | None = None
        self._most = 2
        self._updating = asyncio.Lock()
        self._room = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self.version = 0
        """Version that a request is sampled under that is sent now."""
        self.fault: str | None = None
        """Why the server does not have the adapter that it should have; `None` while it has."""

    @property
    def loaded(self) -> tuple[str, ...]:
        """Names of the adapters that the server has, or may have, oldest first."""
        return tuple(adapter.name for adapter in self._loaded)

    async def connect(self, facts: ServerFacts) -> None:
        """Read what the server allows, after each (re)connection; the adapters that it had are not used any more.

        Raises:
            ConfigError: It takes no adapters, or no longer holds the model that it was started with.
            EngineError: It does not answer.
        """
        data = await self._client.get("/server_info", timeout_s=CONTROL_S)
        settings = _read(data, _Settings, self._client.address)
        most = min(settings.max_loaded_loras or settings.max_loras_per_batch, settings.max_loras_per_batch)
        if (why := _refusal(settings, most, facts)) is not None:
            raise ConfigError(f"sync.adapters: {self._client.address} {why}")
        self._most = most
        old, self._current = self._current, None
        self.version, self.fault = 0, None
        if old is not None:
            self._retire(old)

    def take(self) -> LoadedAdapter | None:
        """Return what a request has to name that is about to be sent, until `leave`; `None` is the plain model.

        Raises:
            EngineError: The server does not have it.
        """
        self.check()
        if self._current is not None:
            self._current.users += 1
        return self._current

    def leave(self, adapter: LoadedAdapter) -> None:
        """Say that a request has come back; the last one of an adapter that is not wanted any more unloads it."""
        adapter.users -= 1
        self._sweep()

    def check(self) -> None:
        """Pass while the server has what requests name.

        Raises:
            EngineError: It has not.
        """
        if self.fault is not None:
            raise EngineError(self.fault, engine=self._client.address, retryable=True)

    def lost(self, adapter: LoadedAdapter, error: EngineError) -> bool:
        """Say whether a request was refused because the server does not know its adapter, and remember that."""
        if error.status != 400 or adapter.name not in error.message:
            return False
        if adapter is self._current:
            self.fault = f"it does not have version {adapter.version} any more, as if it had been restarted"
        return True

    async def pause(self, mode: PauseMode | None = None) -> None:
        """Stop sampling; adapters need no pause.

        Raises:
            WeightSyncError: The server refused or did not answer.
        """
        try:
            await self._client.post("/pause_generation", {"mode": mode or "in_place"}, timeout_s=PAUSE_S)
        except EngineError as error:
            raise WeightSyncError(f"the server cannot be paused; {self._holds()}: {error}") from error

    async def update(self, weights: Iterable[tuple[str, Any]], version: int) -> None:
        """Load an adapter; requests that are sent from now on name it, others keep theirs.

        Args:
            weights: An `Adapter`.
            version: Its number.

        Raises:
            WeightSyncError: It is none, the server does not take it, or has no room for it; requests go on under the
                version that they had.
        """
        async with self._updating:
            try:
                adapter = _fit(weights)
                await self._make_room()
                new = await self._load(adapter, version)
            except Exception as error:  # what writes files has errors of its own
                raise WeightSyncError(f"version {version} was not loaded; {self._holds()}: {error}") from error
            old, self._current = self._current, new
            self.version, self.fault = version, None
            if old is not None:
                self._retire(old)

    async def resume(self) -> None:
        """Sample again.

        Raises:
            WeightSyncError: The server refused or did not answer; it may still be paused.
        """
        try:
            await self._client.post("/continue_generation", timeout_s=CONTROL_S)
        except EngineError as error:
            raise WeightSyncError(f"the server may still be paused; {self._holds()}: {error}") from error

    async def aclose(self) -> None:
        """Unload everything, as far as the server answers soon, and remove what was written."""
        self._current = None
        for adapter in self._loaded:
            adapter.retired, adapter.users = True, 0
        self._sweep()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=CLOSE_S)
        for task in tuple(self._tasks):
            task.cancel()
        left, self._loaded = self._loaded, []
        for adapter in left:
            await asyncio.to_thread(adapter.folder.cleanup)

    def _holds(self) -> str:
        where = self._client.address
        if self.fault is not None:
            return f"{where} is not used ({self.fault})"
        return f"{where} goes on with version {self.version}"

    async def _make_room(self) -> None:
        """Wait until one more adapter may be loaded.

        Raises:
            WeightSyncError: Requests of older ones did not end in time, or those cannot be unloaded.
        """
        self._sweep()
        with suppress(TimeoutError):
            async with asyncio.timeout(self._timeout_s):
                while len(self._loaded) >= self._most:
                    self._room.clear()
                    with suppress(TimeoutError):
                        await asyncio.wait_for(self._room.wait(), RETRY_S)
                    self._sweep()
        if len(self._loaded) >= self._most:
            used = ", ".join(f"{a.name} by {a.users} requests" for a in self._loaded)
            raise WeightSyncError(
                f"the server takes {self._most} adapters (--max-loras-per-batch, --max-loaded-loras), and for "
                f"{self._timeout_s:g} s none could be unloaded: {used}"
            )

    async def _load(self, adapter: Adapter, version: int) -> LoadedAdapter:
        folders = list[TemporaryDirectory[str]]()

        def write() -> None:
            folders.append(TemporaryDirectory(prefix=f"icrl-adapter-{version}-", dir=self._directory))
            write_adapter(Path(folders[0].name), adapter)

        try:
            # Nothing is removed that is still being written.
            await uncancelled(asyncio.to_thread(write), patience_s=self._timeout_s)
        except BaseException:
            for folder in folders:
                await asyncio.to_thread(folder.cleanup)
            raise
        name = f"icrl-{self._run}-{next(self._numbers)}-v{version}"
        new = LoadedAdapter(name=name, version=version, folder=folders[0], versions=_OneVersion(version))
        self._loaded.append(new)
        try:
            await self._tell_load(new)
        except BaseException:  # the server may have it all the same, or take it yet
            self._retire(new)
            raise
        return new

    async def _tell_load(self, new: LoadedAdapter) -> None:
        payload = {"lora_name": new.name, "lora_path": new.folder.name}
        data = await self._client.post("/load_lora_adapter", payload, timeout_s=self._timeout_s)
        answer = _read(data, _Answer, self._client.address)
        if not answer.success or new.name not in answer.loaded_adapters:
            raise EngineError(f"/load_lora_adapter says {data[:200]!r}", engine=self._client.address)

    def _retire(self, adapter: LoadedAdapter) -> None:
        adapter.retired = True
        self._sweep()

    def _sweep(self) -> None:
        """Begin to unload what nobody wants and nobody uses."""
        for adapter in self._loaded:
            if adapter.retired and not adapter.users and not adapter.leaving:
                adapter.leaving = True
                self._spawn(self._unload(adapter))

    async def _unload(self, adapter: LoadedAdapter) -> None:
        try:
            await self._client.post("/unload_lora_adapter", {"lora_name": adapter.name}, timeout_s=UNLOAD_S)
        except EngineError as error:
            if error.status != 400 or "does not exist" not in error.message:
                return  # it counts as loaded, and is tried again with the next update
        finally:
            adapter.leaving = False
        self._loaded.remove(adapter)
        self._room.set()
        await asyncio.to_thread(adapter.folder.cleanup)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def write_adapter(directory: Path, adapter: Adapter) -> None:
    """Write an adapter as peft does: `adapter_config.json` and `adapter_model.safetensors`.

    Args:
        directory: Where; must exist.
        adapter: The adapter.
    """
    from safetensors.torch import save_file

    (directory / "adapter_config.json").write_text(json.dumps(dict(adapter.config), indent=2), encoding="utf-8")
    save_file(dict(adapter.tensors), directory / "adapter_model.safetensors", metadata={"format": "pt"})


def _fit(weights: Iterable[tuple[str, Any]] | Mapping[str, Any]) -> Adapter:
    if not isinstance(weights, Adapter):
        raise WeightSyncError("it takes adapters only, not whole weights; say adapters='lora' where they are pushed")
    if (why := weights.unfit) is not None:
        raise WeightSyncError(f"the adapter cannot be sent by itself: {why}; merge it (sync.adapters: merged)")
    return weights


def _refusal(settings: _Settings, most: int, facts: ServerFacts) -> str | None:
    """Say why a server cannot be used with adapters."""
    if not settings.enable_lora:
        return (
            "takes no adapters; start it with `icrl sglang --lora-rank RANK`, or with --enable-lora --max-lora-rank "
            "RANK --lora-target-modules q_proj k_proj …"
        )
    if settings.dp_size != 1:
        return f"has {settings.dp_size} data-parallel replicas, which load no adapters; start them as separate servers"
    if most < 2:
        return "has room for one adapter, and the next is loaded beside it; start it with --max-loras-per-batch 4"
    if facts.weight_version != UNTOUCHED:
        return (
            f"holds weights called {facts.weight_version!r}, not those that it was started with, on which adapters "
            "belong; restart it"
        )
    return None


def _read(data: bytes, shape: type[Any], address: str) -> Any:
    try:
        return msgspec.json.decode(data, type=shape)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise EngineError(f"is not what an SGLang server says: {error}", engine=address) from error
