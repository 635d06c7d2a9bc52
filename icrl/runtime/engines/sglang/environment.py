"""Where the server's own Python environment for CPUs is, and whether it is whole.

SGLang pins versions that icrl's own environment cannot hold, and needs stand-ins for what only GPUs have (`shim/`), so
on a CPU it lives in an environment of its own and is only ever run as a process.

    find_environment    the environment, or the reason why there is none
    Environment         its Python, and the variables that a server in it needs
    Record              what is written into it: begun, and at the end, complete
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import msgspec

from icrl.errors import ConfigError

__all__ = [
    "INSTALL",
    "RECORD",
    "VERSION",
    "Environment",
    "Record",
    "environment_directory",
    "find_environment",
    "read_record",
    "requirements",
]

VERSION = "0.5.23"
"""The version of SGLang that is installed for CPUs."""
INSTALL = "icrl sglang --cpu --install"
"""What makes the environment."""
_PACKAGE = "icrl.runtime.engines.sglang"
RECORD = "icrl-environment.json"
"""The file in it that says what was installed."""
_OURS = frozenset({"PYTHONHOME", "PYTHONPATH", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__"})
"""Variables that describe our own interpreter."""


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What an installation wrote into an environment."""

    sglang: str
    """Version of SGLang."""
    requirements: str
    """SHA-256 of the list of packages."""
    complete: bool
    """Whether it got to its end."""

    @classmethod
    def wanted(cls, *, complete: bool) -> Record:
        """Return the record of an environment as this version of icrl makes it."""
        digest = hashlib.sha256(requirements().read_bytes()).hexdigest()
        return cls(sglang=VERSION, requirements=digest, complete=complete)

    def write(self, directory: Path) -> None:
        """Write it in one step: it is there whole, or not at all."""
        path = directory / f"{RECORD}.{os.getpid()}"
        path.write_bytes(msgspec.json.encode(self))
        path.replace(directory / RECORD)


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """A Python environment with SGLang for CPUs in it."""

    directory: Path
    """Where it is."""

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.directory / "bin" / "python"

    def variables(self, inherited: Mapping[str, str]) -> dict[str, str]:
        """Return the variables that a process in it needs.

        Args:
            inherited: Ours; what describes our interpreter is left out.

        Example:
            >>> Environment(directory=Path("/env")).variables({"LANG": "C", "VIRTUAL_ENV": "/ours"})["LANG"]
            'C'
        """
        kept = {name: value for name, value in inherited.items() if name not in _OURS}
        # Models are directories by the time they get here. Two threads of a small model only wait for each other.
        defaults = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        return {**defaults, **kept, "SGLANG_USE_CPU_ENGINE": "1", "PYTHONPATH": str(files(_PACKAGE) / "shim")}


def requirements() -> Path:
    """Return the file that lists what is installed."""
    return Path(str(files(_PACKAGE) / "requirements-cpu.txt"))


def environment_directory() -> Path:
    """Return where the environment belongs: `ICRL_SGLANG_VENV`, or a directory of the user's cache.

    Example:
        >>> environment_directory().is_absolute()
        True
    """
    if named := os.environ.get("ICRL_SGLANG_VENV"):
        return Path(named).expanduser().absolute()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return cache.absolute() / "icrl" / f"sglang-{VERSION}"


def find_environment(directory: Path | None = None) -> Environment:
    """Return the environment for CPUs.

    One that somebody made by hand is taken as it is, if SGLang is in it; it has no record.

    Args:
        directory: Where to look; `environment_directory()` if not given.

    Raises:
        ConfigError: There is none, its installation was interrupted, or it is that of another version of icrl.
    """
    directory = directory or environment_directory()
    environment = Environment(directory=directory)
    record = read_record(directory)
    if record is None:
        if not environment.python.exists() or not any(directory.glob("lib/python3*/site-packages/sglang-*.dist-info")):
            raise ConfigError(f"SGLang for CPUs is not installed: there is none in {directory}; run: {INSTALL}")
    elif not record.complete:
        raise ConfigError(f"the installation of SGLang in {directory} was interrupted; run again: {INSTALL}")
    elif record != Record.wanted(complete=True):
        raise ConfigError(
            f"{directory} holds SGLang {record.sglang} as another version of icrl installed it; run: {INSTALL}"
        )
    return environment


def read_record(directory: Path) -> Record | None:
    """Return what an installation wrote into a directory; a record that cannot be read is one of no completed one."""
    try:
        data = (directory / RECORD).read_bytes()
    except OSError:
        return None
    try:
        return msgspec.json.decode(data, type=Record)
    except msgspec.DecodeError:
        return Record.wanted(complete=False)
