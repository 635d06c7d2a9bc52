"""Brings a trainer's weights into a server, and knows at every moment which weights the server holds."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from icrl.errors import EngineError, WeightSyncError
from icrl.runtime.engines.protocol import PauseMode
from icrl.runtime.engines.sglang.client import Client
from icrl.runtime.engines.sglang.facts import ServerFacts
from icrl.runtime.engines.sglang.manifest import (
    Manifest,
    accept,
    as_announced,
    find_checkpoint,
    read_manifest,
)
from icrl.runtime.engines.sglang.versions import MIXED, Versions
from icrl.runtime.engines.uncancelled import uncancelled

if TYPE_CHECKING:
    from icrl.runtime.engines.sglang.checksums import Checksums
    from icrl.runtime.engines.sglang.transports import Transport

__all__ = ["INTERRUPTED", "MIXED", "ServerWeights"]

CONTROL_S = 30.0
"""Deadline of a request that moves no weights."""

PAUSE_S = 60.0
"""Deadline of a pause; one that aborts waits until every request has returned."""

FLUSH_S = 5.0
"""How long a flush may wait for aborted requests to leave the server's batch."""

SETTLE_S = 5.0
"""How long a cancelled pause waits for its answer: a pause that arrived after the resume would last."""

RESUME_AGAIN_S = (0.1, 0.5)
"""Before which a resume that went wrong is tried again."""

INTERRUPTED = "an update of somebody else's failed half-way"
"""Why those of a server that is called so at connect are not known."""


class _Settings(msgspec.Struct):
    """Of `/server_info`."""

    tp_size: int = 1
    device: str | None = None


class _Model(msgspec.Struct):
    """Of `/model_info`."""

    weight_version: str


class _Rank(msgspec.Struct):
    """One process of the server."""

    checksums: dict[str, str]


class _Checked(msgspec.Struct):
    """Of `/weights_checker`."""

    ranks: list[_Rank]


class ServerWeights:
    """The weights of one server, as a `WeightSink`.

    After every call the server holds the weights of `version`, or `fault` says why that is not known; then requests
    must not be sampled there until an update succeeds. A server is never left paused by a failure: `resume` always
    continues it, and gives back what was running as aborted if the weights are not known.

    Args:
        client: Leads to the server.
        facts: What it said at connect.
        transport: `disk` (a file system that the server sees), `tensor` (the same machine), `distributed` (a process
            group: gloo for servers on a CPU, NCCL for others).
        pause_mode: What becomes of running requests, where `pause` is not told.
        flush: Keep new requests from keys and values of older weights, and free those.
        verify: Compare the server's tensors with what was sent, by hash, after every update.
        directory: Where the `disk` transport writes; `None` is the system's directory for temporary files.
        timeout_s: Seconds that one load may take.
        versions: Names the weights, and is told which were taken; by default, those of this connection.
    """

    def __init__(
        self,
        client: Client,
        facts: ServerFacts,
        *,
        transport: Literal["disk", "tensor", "distributed"] = "disk",
        pause_mode: PauseMode = "in_place",
        flush: bool = True,
        verify: bool = False,
        directory: Path | None = None,
        timeout_s: float = 600.0,
        versions: Versions | None = None,
    ) -> None:
        self._client = client
        self._facts = facts
        self._pause_mode: PauseMode = pause_mode
        self._mode = pause_mode
        self._flush = flush
        self._verify = verify
        self._pauses = 0
        self._token = secrets.token_hex(4)
        self._transport: Transport | None = None
        self._checkpoint: Path | None = None
        self._manifest: Manifest | None = None
        self._route: Mapping[str, Any] = {"transport": transport, "timeout_s": timeout_s, "directory": directory}
        self._versions = versions or Versions(facts.weight_version)
        self.version = self._versions.found(facts.weight_version)
        """Version of the weights that the server holds, unless there is a `fault`."""
        self.fault: str | None = INTERRUPTED if facts.weight_version == MIXED else None
        """Why it is not known which weights the server holds; `None` while it is."""
        self.cache_key: str | None = None
        """What requests must send as `extra_key`, so that they find no keys and values of older weights."""
        self.cache_dropped = True
        """Whether the last update freed all keys and values; if not, requests that it found may go on with old ones."""

    async def pause(self, mode: PauseMode | None = None) -> None:
        """Stop sampling.

        Args:
            mode: `abort` returns partials; the others continue after `resume`, `in_place` with the keys and values
                that they have, `retract` after computing them again. `None` is the mode given at construction.

        Raises:
            WeightSyncError: The server refused or did not answer.
        """
        self._mode = mode or self._pause_mode
        asked = self._client.post("/pause_generation", {"mode": self._mode}, timeout_s=PAUSE_S)
        try:
            await uncancelled(asked, patience_s=SETTLE_S)
        except EngineError as error:
            raise WeightSyncError(f"the server cannot be paused; {self._holds()}: {error}") from error
        if self._flush:
            # The server lets nobody in now, so what is sent from here on starts after the update. (Under a key that
            # is sent any earlier, keys and values of the old weights would be filed.) Running requests keep the key
            # they came with, under which the server files their stale keys and values even after a flush.
            self._pauses += 1
            self.cache_key = f"icrl-{self._token}-{self._pauses}"

    async def update(self, weights: Iterable[tuple[str, Any]], version: int) -> None:
        """Replace the weights.

        Args:
            weights: Names and whole tensors; where it has a `layout` (tensors or the like by name), it is consumed as
                a stream, else it is collected first.
            version: Their number; the server is told it with the token of this process.

        Raises:
            WeightSyncError: The weights do not fit, nothing was changed; or the server refused or did not answer.
                The message says what it holds now.
        """
        try:
            layout, pieces = _announced(weights)
            manifest = await self._fitting(layout)
            transport = await self._opened()
            before = await self._server_checksums() if self._verify else None
        except Exception as error:
            raise WeightSyncError(f"version {version} was not sent; {self._holds()}: {error}") from error
        transport.link.touched = self.cache_dropped = False
        try:
            await self._replace(transport, as_announced(pieces, layout), self._versions.name(version))
        except BaseException as error:
            if transport.link.touched:
                await self._doubt(version, before if isinstance(error, Exception) else None)
            if not isinstance(error, Exception):
                raise
            raise WeightSyncError(f"the update to version {version} failed; {self._holds()}: {error}") from error
        self._versions.took(version)
        self.version, self._manifest, self.fault = version, manifest, None

    async def resume(self) -> None:
        """Sample again. Where the weights are not known, running requests are given back as aborted first.

        Raises:
            WeightSyncError: The server refused or did not answer; it may still be paused.
        """
        unnamed: EngineError | None = None
        try:
            if self.fault is not None:
                payload = {"new_version": MIXED, "abort_all_requests": True}
                await self._client.post("/update_weight_version", payload, timeout_s=CONTROL_S)
        except EngineError as error:
            unnamed = error
        finally:
            await self._continue()
        if unnamed is not None:
            raise WeightSyncError(f"the server's weights cannot be named; {self._holds()}: {unnamed}") from unnamed

    async def aclose(self) -> None:
        """Leave the process group, if there is one."""
        if self._transport is not None:
            await self._transport.aclose()

    async def _continue(self) -> None:
        for pause_s in (*RESUME_AGAIN_S, None):
            try:
                await self._client.post("/continue_generation", timeout_s=CONTROL_S)
            except EngineError as error:
                if pause_s is None or not error.retryable:
                    raise WeightSyncError(f"the server may still be paused; {self._holds()}: {error}") from error
                await asyncio.sleep(pause_s)
            else:
                return

    async def _doubt(self, version: int, before: dict[str, str] | None) -> None:
        """Know no more which weights the server holds, unless its checksums show that they are those from before."""
        known, self.fault = (
            self.fault,
            f"version {version} was sent after {self.version} and it is not known what was loaded",
        )
        if known is None and before is not None and await self._still(before):
            self.fault = None

    def _holds(self) -> str:
        """Say what is known about the server's weights."""
        where = self._client.address
        if self.fault is None:
            return f"{where} keeps version {self.version}"
        return f"what {where} holds is not known ({self.fault}); send the weights again, or restart it"

    async def _fitting(self, layout: Mapping[str, Any]) -> Manifest:
        """Compare with the model's tensors, or where those cannot be read, with those of the last update."""
        if self._manifest is None:
            await asyncio.to_thread(self._read_checkpoint)
        return accept(layout, self._manifest)

    def _read_checkpoint(self) -> None:
        self._checkpoint = find_checkpoint(self._facts.model_path, self._facts.tokenizer_path)
        self._manifest = read_manifest(self._checkpoint) if self._checkpoint else None

    async def _opened(self) -> Transport:
        """Make the transport at first use: it brings torch."""
        if self._transport is None:
            from icrl.runtime.engines.sglang.transports import Link, open_transport

            data = await self._client.get("/server_info", timeout_s=CONTROL_S)
            settings = msgspec.json.decode(data, type=_Settings)
            link = Link(
                client=self._client,
                ranks=settings.tp_size,
                device=settings.device or "cuda",
                checkpoint=self._checkpoint,
                **self._route,
            )
            self._transport = open_transport(link)
        return self._transport

    async def _replace(self, transport: Transport, pieces: Iterator[tuple[str, Any]], name: str) -> None:
        sums = self._checksums()
        stream = pieces if sums is None else sums.watch(pieces)
        bracketed = transport.bracketed and self._facts.brackets_updates
        try:
            if bracketed:
                await self._begin()
            await transport.send(stream, name)
        except BaseException:
            if bracketed:
                await self._abandon()
            raise
        if bracketed:
            await self._client.post("/end_weight_update", timeout_s=CONTROL_S)
        self.cache_dropped = self._flush and await self._drop_cache()
        await self._confirm(name)
        if sums is not None:
            sums.compare(await self._server_checksums())

    def _checksums(self) -> Checksums | None:
        if not self._verify:
            return None
        from icrl.runtime.engines.sglang.checksums import Checksums

        return Checksums()

    async def _begin(self) -> None:
        try:
            await self._client.post("/begin_weight_update", timeout_s=CONTROL_S)
        except EngineError as error:
            # A trainer that died, or a request that was sent twice, has opened it; what counts is that it is open.
            if "already open" not in str(error):
                raise

    async def _abandon(self) -> None:
        """Close the session that a failed update opened; the failure itself is what is reported."""
        try:
            await self._client.post("/end_weight_update", timeout_s=CONTROL_S)
        except EngineError:
            return

    async def _drop_cache(self) -> bool:
        """Free what older weights computed; a server with requests paused in place refuses: `cache_key` protects."""
        # With a timeout a server waits until no request is left, so retracted ones would be waited for in vain.
        for path in ("/flush_cache", f"/flush_cache?timeout={FLUSH_S}")[: 2 if self._mode == "abort" else 1]:
            try:
                await self._client.post(path, b"", timeout_s=CONTROL_S)
            except EngineError as error:
                if error.status != 400:
                    raise
            else:
                return True
        return False

    async def _confirm(self, name: str) -> None:
        data = await self._client.get("/model_info", timeout_s=CONTROL_S)
        found = msgspec.json.decode(data, type=_Model).weight_version
        if found != name:
            raise WeightSyncError(f"the server calls its weights {found!r}, not {name!r}")

    async def _still(self, before: dict[str, str]) -> bool:
        try:
            return await self._server_checksums() == before
        except (EngineError, WeightSyncError, msgspec.MsgspecError):
            return False

    async def _server_checksums(self) -> dict[str, str]:
        data = await self._client.post("/weights_checker", {"action": "checksum"}, timeout_s=self._route["timeout_s"])
        ranks = msgspec.json.decode(data, type=_Checked).ranks
        if len(ranks) != 1:
            raise WeightSyncError(f"the server has {len(ranks)} ranks; verify=True can compare one only")
        return ranks[0].checksums


def _announced(weights: Iterable[tuple[str, Any]]) -> tuple[Mapping[str, Any], Iterable[tuple[str, Any]]]:
    """Return what will come, by name, and what comes; what does not say is collected first."""
    layout: Mapping[str, Any] | None = getattr(weights, "layout", None)
    if layout is None:
        layout = dict(weights)
        return layout, layout.items()
    return layout, weights
