"""LoRA adapters that are only names: loaded, used, unloaded and evicted in the order that the server insists on."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from icrl.testing.stub.requests import Body, Refusal

__all__ = ["Adapters"]

FILES = ("adapter_config.json", "adapter_model.safetensors")


@dataclass(slots=True, eq=False, kw_only=True)
class Adapters:
    """The adapters of one server process.

    Args:
        most: How many it holds; `None` where it was started without LoRA.
    """

    most: int | None
    loaded: dict[str, str] = field(default_factory=dict)
    """Directories by name, the one that was used least recently first."""
    remembered: dict[str, str] = field(default_factory=dict)
    """Directories of all that were ever loaded; one that is named again is loaded again."""
    users: Counter[str] = field(default_factory=Counter)
    """Running requests, by what `named` returned for them."""
    history: list[tuple[str, str]] = field(default_factory=list)
    """`load` or `unload`, and the name, in order."""
    _ids: dict[str, str] = field(default_factory=dict)
    _updating: asyncio.Lock = field(default_factory=asyncio.Lock)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def load(self, body: Body) -> dict[str, Any]:
        """Load a directory under a name; the least recently used one has to go where there are too many."""
        if self.most is None:
            raise self._failed("LoRA is not enabled. Please set `--enable-lora` to enable LoRA.")
        async with self._updating:
            if body.lora_name in self.loaded:
                raise self._failed(f"Failed to load LoRA adapter {body.lora_name} because it is already loaded")
            await asyncio.to_thread(self._check, Path(body.lora_path))
            self.loaded[body.lora_name] = self.remembered[body.lora_name] = body.lora_path
            self._ids[body.lora_name] = uuid.uuid4().hex
            self.history.append(("load", body.lora_name))
            while len(self.loaded) > self.most:
                await self._drop(next(iter(self.loaded)))
            return self._done()

    async def unload(self, body: Body) -> dict[str, Any]:
        """Forget an adapter once no request uses it."""
        async with self._updating:
            if body.lora_name not in self.loaded:
                raise Refusal(
                    400,
                    {
                        "success": False,
                        "error_message": f"LoRA with name {body.lora_name} does not exist. Loaded LoRAs: "
                        f"odict_keys({[*self.loaded]})",
                        "loaded_adapters": None,
                    },
                )
            await self._drop(body.lora_name)
            return self._done()

    async def named(self, name: str) -> str:
        """Begin a request that names an adapter; return what keeps its keys and values apart, which goes to `left`."""
        if self.most is None:
            raise Refusal.said(f"LoRA adapter '{name}' was requested, but LoRA is not enabled.")
        if name not in self.remembered:
            raise Refusal.said(
                f"Got LoRA adapter that has never been loaded: {name}\n"
                f"All loaded adapters: dict_keys({[*self.remembered]})."
            )
        if name not in self.loaded:
            try:
                await self.load(Body(lora_name=name, lora_path=self.remembered[name]))
            except Refusal as refusal:
                why = refusal.body["error_message"]
                raise Refusal.said(f"Failed to implicitly load LoRA adapter {name}: {why}") from None
        self.loaded[name] = self.loaded.pop(name)
        key = self._ids[name]
        self.users[key] += 1
        return key

    def left(self, key: str) -> None:
        """End a request that named an adapter."""
        self.users[key] -= 1
        self._changed.set()

    def routes(self) -> dict[str, Callable[[Body], Any]]:
        """Return what answers each path."""
        return {"/load_lora_adapter": self.load, "/unload_lora_adapter": self.unload}

    async def _drop(self, name: str) -> None:
        del self.loaded[name]
        key = self._ids.pop(name)
        while self.users[key] > 0:
            self._changed.clear()
            await self._changed.wait()
        self.history.append(("unload", name))

    def _check(self, directory: Path) -> None:
        """Refuse what is no adapter, or one with modules that the server only takes with others."""
        if not all((directory / name).is_file() for name in FILES):
            raise self._failed(f"Repo id must be in the form 'repo_name' or 'namespace/repo_name': '{directory}'.")
        targets = json.loads((directory / FILES[0]).read_text())["target_modules"]
        if "q_proj" in targets and "v_proj" not in targets:
            raise self._failed("'base_model.model.model.layers.0.self_attn.v_proj.lora_A.weight'")

    def _done(self) -> dict[str, Any]:
        return {"success": True, "error_message": "", "loaded_adapters": dict(self.loaded)}

    def _failed(self, message: str) -> Refusal:
        return Refusal(400, {"success": False, "error_message": message, "loaded_adapters": dict(self.loaded)})
