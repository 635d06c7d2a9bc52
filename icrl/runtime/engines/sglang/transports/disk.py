"""Through files: a Hugging Face directory is written, loaded by the server, and removed."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import save_file

from icrl.runtime.engines.sglang.transports.link import Link, Piece, buckets, in_thread
from icrl.runtime.engines.uncancelled import uncancelled

__all__ = ["DiskTransport", "write_checkpoint"]


class DiskTransport:
    """Needs a file system that the server sees under the same path; works across machines where it is shared."""

    bracketed = False

    def __init__(self, link: Link) -> None:
        self.link = link

    async def send(self, pieces: Iterator[Piece], version: str) -> None:
        """Write a directory, have it loaded, and remove it, whatever happens; a cancelled caller waits for the load.

        Raises:
            EngineError: The server refused or did not answer.
        """
        link, prefix = self.link, f"icrl-weights-{version.partition('@')[0]}-"
        folders, enough = list[TemporaryDirectory[str]](), threading.Event()
        wanted = takewhile(lambda _: not enough.is_set(), pieces)

        def write() -> None:
            folders.append(TemporaryDirectory(prefix=prefix, dir=link.directory))
            write_checkpoint(Path(folders[0].name), wanted, link.checkpoint)

        try:
            # A directory that is still written into cannot be removed.
            await in_thread(write, on_cancel=enough.set)
            payload = {
                "model_path": folders[0].name,
                "load_format": "auto",
                "weight_version": version,
                "flush_cache": False,
            }
            # A server dies of files that vanish while it reads them.
            await uncancelled(link.load("/update_weights_from_disk", payload), patience_s=link.timeout_s)
        finally:
            for folder in folders:
                await in_thread(folder.cleanup)

    async def aclose(self) -> None:
        """Hold nothing."""


def write_checkpoint(directory: Path, pieces: Iterator[Piece], origin: Path | None) -> None:
    """Write weights as a Hugging Face directory, in files of one bucket each.

    Args:
        directory: Where; must exist.
        pieces: The weights.
        origin: A directory whose configuration and tokenizer are copied.
    """
    index: dict[str, str] = {}
    size = 0
    for number, (bucket, _) in enumerate(buckets(pieces)):
        file = f"model-{number:05d}.safetensors"
        # Tensors that share memory, as two slices of one gathered parameter may, cannot be written as they are.
        tensors = {name: tensor.to("cpu").clone(memory_format=torch.contiguous_format) for name, tensor in bucket}
        save_file(tensors, directory / file, metadata={"format": "pt"})
        index |= dict.fromkeys(tensors, file)
        size += sum(tensor.nbytes for tensor in tensors.values())
    listing = {"metadata": {"total_size": size}, "weight_map": index}
    (directory / "model.safetensors.index.json").write_text(json.dumps(listing))
    for file_path in _settings(origin):
        shutil.copyfile(file_path, directory / file_path.name)


def _settings(origin: Path | None) -> list[Path]:
    if origin is None:
        return []
    kept = {".json", ".txt", ".jinja", ".model", ".py"}
    return [p for p in origin.iterdir() if p.suffix in kept and p.is_file() and not p.name.endswith(".index.json")]
