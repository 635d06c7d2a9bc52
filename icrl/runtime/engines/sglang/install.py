"""Making the server's own environment for CPUs: `icrl sglang --cpu --install`.

Packages come from the indexes that pip is configured with. Exact versions are installed without resolving: SGLang's
metadata asks for CUDA. torch goes first, because a torch for CUDA would be the wrong one, and gigabytes of it.
"""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from icrl.errors import ConfigError
from icrl.runtime.engines.sglang.environment import (
    RECORD,
    VERSION,
    Environment,
    Record,
    environment_directory,
    find_environment,
    read_record,
    requirements,
)

__all__ = ["DISK_GB", "install"]

DISK_GB = 2.0
"""What the environment takes on the disk once it ran, in GB."""
_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
_IS_FOR_CPUS = """
import importlib.util, pathlib, runpy, sys
version = pathlib.Path(importlib.util.find_spec("torch").origin).with_name("version.py")
sys.exit(3 if runpy.run_path(str(version))["cuda"] else 0)
"""
"""Reads torch's version without importing torch, which cannot be imported before its dependencies are there."""
_CUDA = 3
_IMPORTS = "import sglang, torch, torchvision, transformers; import sglang.srt.server_args"


def install(directory: Path | None = None, *, say: Callable[[str], None]) -> Environment:
    """Make the environment, or finish it; one that is whole is left alone.

    Args:
        directory: Where; `environment_directory()` if not given.
        say: Told what happens. pip writes its own progress to standard output.

    Raises:
        ConfigError: The directory holds something else, the disk is full, or pip failed.
    """
    directory = directory or environment_directory()
    with _only_one(directory, say):
        _check_ours(directory)  # here: another process may be about to fill it
        try:
            environment = find_environment(directory)
        except ConfigError:
            return _make(directory, say)
        say(f"SGLang {VERSION} for CPUs is installed: {directory}")
        return environment


def _check_ours(directory: Path) -> None:
    """Refuse a directory that we would have to overwrite without having made it."""
    if not directory.exists() or read_record(directory) is not None:
        return
    foreign = not directory.is_dir() or any(not entry.name.startswith(RECORD) for entry in directory.iterdir())
    if foreign and not (directory / "pyvenv.cfg").is_file():
        raise ConfigError(f"{directory} is no Python environment; name another place in ICRL_SGLANG_VENV")


@contextmanager
def _only_one(directory: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Let one process at a time work on a directory."""
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        lock = directory.with_name(f"{directory.name}.lock").open("w", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{directory} cannot be made ({error}); name another place in ICRL_SGLANG_VENV") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another process works on {directory}; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _make(directory: Path, say: Callable[[str], None]) -> Environment:
    environment = Environment(directory=directory)
    free_gb = shutil.disk_usage(directory.parent).free / 1e9
    say(f"installing SGLang {VERSION} for CPUs into {directory}: {DISK_GB:g} GB, of {free_gb:.1f} GB that are free")
    if free_gb < DISK_GB:
        raise ConfigError(f"{directory.parent} has {free_gb:.1f} GB free, and SGLang needs {DISK_GB:g}")
    directory.mkdir(exist_ok=True)
    Record.wanted(complete=False).write(directory)
    _run([sys.executable, "-m", "venv", str(directory)], "make a virtual environment (does Python lack ensurepip?)")
    pins = requirements().read_text(encoding="utf-8").splitlines()
    _pip(environment, [pin for pin in pins if pin.startswith("torch==")])
    _check_torch(environment)
    _pip(environment, ["-r", str(requirements()), f"sglang=={VERSION}"])
    say("compiling and importing it once")
    _run([str(environment.python), "-c", _IMPORTS], "import it", environment)
    Record.wanted(complete=True).write(directory)
    say(f"installed: {directory}")
    return environment


def _check_torch(environment: Environment) -> None:
    """Find a torch for CUDA, whose libraries are not there, before the rest is fetched."""
    command = [str(environment.python), "-c", _IS_FOR_CPUS]
    if subprocess.run(command, check=False, env=environment.variables({})).returncode == _CUDA:
        raise ConfigError(
            "the package index gave a torch for CUDA; name PyTorch's index for CPUs as well, and run again: "
            f"export PIP_EXTRA_INDEX_URL={_CPU_INDEX}"
        )


def _pip(environment: Environment, what: Sequence[str]) -> None:
    # A torch for CUDA that an earlier attempt left behind satisfies the pin, and would stay.
    again = ["--force-reinstall"] if what[0].startswith("torch==") else []
    options = ["--no-deps", "--no-input", "--disable-pip-version-check", *again]
    # -P: the working directory may hold modules with the names of pip's.
    _run([str(environment.python), "-P", "-m", "pip", "install", *options, *what], "install the packages: see above")


def _run(command: Sequence[str], what: str, environment: Environment | None = None) -> None:
    variables = None if environment is None else environment.variables({})
    try:
        subprocess.run(command, check=True, env=variables)
    except subprocess.CalledProcessError as error:
        raise ConfigError(f"could not {what} (exit code {error.returncode})") from error
