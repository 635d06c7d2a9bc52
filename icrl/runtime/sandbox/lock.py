"""The layers around a program, prepared in the zygote and closed in the child before it sees any of the program."""

from __future__ import annotations

import contextlib
import os
import resource
import struct
from collections.abc import Collection
from dataclasses import dataclass

from icrl.errors import SandboxError
from icrl.runtime.sandbox.kernel import call, prctl
from icrl.runtime.sandbox.landlock import build_ruleset, library_directory, restrict, supported
from icrl.runtime.sandbox.seccomp import build_filter, has_filters, install_filter
from icrl.runtime.sandbox.syscalls import Architecture, current

__all__ = ["LAYERS", "Lock"]

LAYERS = ("rlimits", "privileges", "landlock", "seccomp")
"""In the order in which they close: bounds on resources, no capabilities now or later, files, system calls."""

_SET_NO_NEW_PRIVS = 38
_CAPABILITY_VERSION = 0x20080522
_MIB = 1 << 20
_MAX_FILES = 32
_STACK_BYTES = 8 * _MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Lock:
    """What has to be ready before a child closes itself in: then nothing is opened, loaded or looked up any more."""

    architecture: Architecture
    """Of this machine."""
    layers: frozenset[str]
    """Which of `LAYERS` to close."""
    ruleset: int | None
    """Descriptor of the Landlock ruleset, if that is a layer and the kernel has it."""
    program: bytes
    """The system call filter."""

    @classmethod
    def prepare(cls, layers: Collection[str], roots: Collection[str], *, partial: bool) -> Lock:
        """Build the filter and the ruleset.

        Args:
            layers: Some of `LAYERS`.
            roots: Directories that children may read; that of the C library comes to them.
            partial: Do without a layer that the kernel lacks.

        Raises:
            SandboxError: The kernel lacks a layer, or there is no table for its architecture.
        """
        architecture = current()
        version = supported(architecture)
        has = {"landlock": version > 0, "seccomp": has_filters()}
        lacking = {layer for layer in layers if not has.get(layer, True)}
        if lacking and not partial:
            raise SandboxError(f"the kernel lacks {' and '.join(sorted(lacking))}")
        chosen = frozenset(layers) - lacking
        ruleset = build_ruleset(architecture, [*roots, *library_directory()], version) if "landlock" in chosen else None
        return cls(architecture=architecture, layers=chosen, ruleset=ruleset, program=build_filter(architecture))

    def close(self, *, cpu_s: int, memory_mb: int) -> None:
        """Lock this process, for good.

        Args:
            cpu_s: Processor seconds after which the kernel ends it.
            memory_mb: MiB of address space.

        Raises:
            OSError: A layer is not to be had; the process must not go on.
        """
        if "rlimits" in self.layers:
            _limit(cpu_s, memory_mb)
        if "privileges" in self.layers:
            prctl(_SET_NO_NEW_PRIVS, 1)
            empty = struct.pack("6I", 0, 0, 0, 0, 0, 0)
            call(self.architecture.numbers["capset"], struct.pack("Ii", _CAPABILITY_VERSION, 0), empty)
        if self.ruleset is not None:
            restrict(self.architecture, self.ruleset)
            os.close(self.ruleset)
        if "seccomp" in self.layers:
            install_filter(self.program)


def _limit(cpu_s: int, memory_mb: int) -> None:
    # Of all processes the kernel should rather end this one than the one that serves, if memory runs out.
    with contextlib.suppress(OSError):
        descriptor = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
        os.write(descriptor, b"1000")
        os.close(descriptor)
    memory = memory_mb * _MIB
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 1))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (_MAX_FILES, _MAX_FILES))
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_STACK, (_STACK_BYTES, _STACK_BYTES))
