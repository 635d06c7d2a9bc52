"""Weights that are only names: every way to update them, with the order that the server insists on."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from icrl.testing.stub.live import Sampler
from icrl.testing.stub.requests import Body, Refusal

__all__ = ["Update", "Weights"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """One weight update that succeeded."""

    transport: str
    """`disk`, `tensor` or `distributed`."""
    version: str | None
    """The name that the weights were given."""
    source: tuple[str, ...]
    """The directory, the names of tensors, or one serialised bundle a rank."""
    flushed: bool
    """Whether the cache was dropped."""
    paused: bool
    """Whether generation was paused meanwhile."""


@dataclass(slots=True, eq=False, kw_only=True)
class Weights:
    """The weights of one server process.

    Args:
        sampler: Whose tokens carry the version.
        brackets: Whether tensors are only taken between begin and end.
    """

    sampler: Sampler
    brackets: bool
    updates: list[Update] = field(default_factory=list)
    """Every update that succeeded, in order."""
    groups: dict[str, Body] = field(default_factory=dict)
    """Process groups that were set up, by name."""
    open: bool = False
    """Whether an update has begun and not ended."""

    async def from_disk(self, body: Body) -> dict[str, Any]:
        """Load a directory."""
        await self._ready(body)
        if not await asyncio.to_thread(Path(body.model_path).is_dir):
            raise _failed(
                "Failed to get weights iterator: Repo id must be in the form 'repo_name' or 'namespace/repo_name': "
                f"'{body.model_path}'. Use `repo_type` argument if needed..",
                num_paused_requests=0,
            )
        self._take("disk", body, (body.model_path,))
        return _done(f"Succeeded to update model weights.{_renamed(body)}", num_paused_requests=0)

    async def from_tensor(self, body: Body) -> dict[str, Any]:
        """Take serialised tensors."""
        self._inside("update_weights_from_tensor")
        await self._ready(body)
        if not body.serialized_named_tensors:
            raise _failed("list index out of range")
        self._take("tensor", body, tuple(body.serialized_named_tensors))
        return _done(f"Success{_renamed(body)}")

    async def from_distributed(self, body: Body) -> dict[str, Any]:
        """Take tensors that were broadcast in a group."""
        self._inside("update_weights_from_distributed")
        if body.group_name not in self.groups:
            raise _failed(f"Group {body.group_name} not in {[*self.groups]}. Please call `init_weights_update_group`.")
        await self._ready(body)
        self._take("distributed", body, tuple(body.names))
        return _done(f"Succeeded to update parameter online.{_renamed(body)}")

    async def begin(self, body: Body) -> dict[str, Any]:
        """Open an update."""
        await self._ready(body)
        self.open = True
        return _done("Success")

    async def end(self, body: Body) -> dict[str, Any]:
        """Close an update."""
        if not self.open:
            raise _failed("no weight-update session is open; call begin_weight_update() first")
        await self._ready(body)
        self.open = False
        return _done("Success")

    async def join(self, body: Body) -> dict[str, Any]:
        """Set up a process group; the stub is in it by name only."""
        self.groups[body.group_name] = body
        return _done("Succeeded to initialize custom process group.")

    async def leave(self, body: Body) -> dict[str, Any]:
        """Take a process group down."""
        if self.groups.pop(body.group_name, None) is None:
            raise _failed("The group to be destroyed does not exist.")
        return _done("Succeeded to destroy custom process group.")

    async def rename(self, body: Body) -> dict[str, Any]:
        """Give the weights another name."""
        if body.abort_all_requests is not False:
            self.sampler.abort_all()
        self.sampler.renew(body.new_version, flush=False)
        return _done(f"Weight version updated to {body.new_version}", new_version=body.new_version)

    async def check(self, body: Body) -> dict[str, Any]:
        """Return checksums: equal where the same updates were made."""
        made = hashlib.blake2b(repr([(u.transport, u.source) for u in self.updates]).encode(), digest_size=8)
        return _done("Success.", ranks=[{"checksums": {"model.weight": made.hexdigest()}}])

    def _inside(self, call: str) -> None:
        if self.brackets and not self.open:
            raise _failed(f"{call} must run between begin_weight_update() and end_weight_update()")

    async def _ready(self, body: Body) -> None:
        """Wait until no request is in the way, as the server does unless it is paused."""
        if body.abort_all_requests:
            self.sampler.abort_all()
        if self.sampler.paused:
            return
        self.sampler.going.clear()
        try:
            await self.sampler.idle.wait()
        finally:
            if not self.sampler.paused:
                self.sampler.going.set()

    def _take(self, transport: str, body: Body, source: tuple[str, ...]) -> None:
        self.updates.append(
            Update(
                transport=transport,
                version=body.weight_version,
                source=source,
                flushed=body.flush_cache,
                paused=self.sampler.paused,
            )
        )
        self.sampler.renew(body.weight_version, flush=body.flush_cache)

    def routes(self) -> dict[str, Callable[[Body], Any]]:
        """Return what answers each path."""
        named = {
            "/update_weights_from_disk": self.from_disk,
            "/update_weights_from_tensor": self.from_tensor,
            "/update_weights_from_distributed": self.from_distributed,
            "/init_weights_update_group": self.join,
            "/destroy_weights_update_group": self.leave,
            "/update_weight_version": self.rename,
            "/weights_checker": self.check,
        }
        return named | ({"/begin_weight_update": self.begin, "/end_weight_update": self.end} if self.brackets else {})


def _renamed(body: Body) -> str:
    return f" Weight version updated to {body.weight_version}." if body.weight_version is not None else ""


def _done(message: str, **more: Any) -> dict[str, Any]:
    return {"success": True, "message": message, **more}


def _failed(message: str, **more: Any) -> Refusal:
    return Refusal(400, {"success": False, "message": message, **more})
