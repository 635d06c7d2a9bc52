from __future__ import annotations

import json
import threading
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from sglang_places import fake_environment

from icrl.errors import ConfigError
from icrl.runtime.engines.sglang import install as module
from icrl.runtime.engines.sglang.environment import (
    INSTALL,
    RECORD,
    VERSION,
    Record,
    environment_directory,
    find_environment,
    read_record,
    requirements,
)
from icrl.runtime.engines.sglang.install import install


@pytest.fixture
def directory(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("ICRL_SGLANG_VENV", str(tmp_path / "env"))
    return tmp_path / "env"


class Commands:
    """Stands in for what an installation runs."""

    def __init__(self) -> None:
        self.ran: list[list[str]] = []
        self.fails: dict[str, int] = {}

    def run(self, command, *, check, env=None, **_):
        self.ran.append(command[1:])
        line = " ".join(command[1:])
        if line.startswith("-m venv"):
            fake_environment(Path(command[-1]), python="#!/bin/sh\n")
        code = next((code for part, code in self.fails.items() if part in line), 0)
        if check and code:
            raise module.subprocess.CalledProcessError(code, command)
        return CompletedProcess(command, code)


@pytest.fixture
def commands(monkeypatch) -> Commands:
    commands = Commands()
    monkeypatch.setattr(module.subprocess, "run", commands.run)
    return commands


def test_the_place_is_what_the_variable_says_or_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.delenv("ICRL_SGLANG_VENV", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert environment_directory() == tmp_path / "icrl" / f"sglang-{VERSION}"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert environment_directory() == Path.home() / ".cache" / "icrl" / f"sglang-{VERSION}"
    monkeypatch.setenv("ICRL_SGLANG_VENV", "~/mine")
    assert environment_directory() == Path.home() / "mine"


def test_every_package_is_pinned_exactly_and_torch_is_named_once():
    pins = [line for line in requirements().read_text().splitlines() if line and not line.startswith("#")]
    assert all(pin.count("==") == 1 and " " not in pin for pin in pins)
    assert len({pin.partition("==")[0].lower() for pin in pins}) == len(pins) > 50
    assert [pin for pin in pins if pin.startswith("torch==")] == ["torch==2.13.0"]
    assert not any(pin.startswith(("sglang", "triton", "nvidia")) for pin in pins)


def test_nothing_there_says_what_to_run(directory):
    with pytest.raises(ConfigError, match=f"there is none in {directory}; run: {INSTALL}"):
        find_environment()
    directory.mkdir()
    with pytest.raises(ConfigError, match="there is none"):
        find_environment()


def test_one_that_somebody_made_by_hand_is_taken(directory):
    fake_environment(directory)
    assert find_environment().python == directory / "bin" / "python"


def test_variables_of_our_interpreter_stay_here_and_the_users_are_kept(directory):
    fake_environment(directory)
    inherited = {"PYTHONPATH": "/ours", "VIRTUAL_ENV": "/ours", "OMP_NUM_THREADS": "3", "HF_HOME": "/models"}
    variables = find_environment().variables(inherited)
    assert "VIRTUAL_ENV" not in variables
    assert (variables["OMP_NUM_THREADS"], variables["HF_HOME"]) == ("3", "/models")
    shim = Path(variables["PYTHONPATH"])
    assert {path.name for path in shim.iterdir()} >= {"sitecustomize.py", "sgl_kernel"}
    for path in shim.rglob("*.py"):
        assert path.read_text().startswith("# SPDX-License-Identifier: Apache-2.0\n")


def test_an_installation_is_made_of_five_steps_and_done_once(directory, commands):
    told = []
    environment = install(say=told.append)
    assert environment == find_environment()
    venv, torch, check, rest, trial = commands.ran
    assert venv == ["-m", "venv", str(directory)]
    assert torch[:4] == rest[:4] == ["-P", "-m", "pip", "install"]
    assert "version.py" in check[1]
    assert "import sglang" in trial[1]
    assert torch[-1] == "torch==2.13.0"
    assert rest[-3:] == ["-r", str(requirements()), f"sglang=={VERSION}"]
    assert "--no-deps" in torch
    assert "--no-deps" in rest
    assert "2 GB" in told[0]
    assert install(say=told.append) == environment
    assert len(commands.ran) == 5
    assert told[-1] == f"SGLang {VERSION} for CPUs is installed: {directory}"


@pytest.mark.parametrize(
    ("step", "problem"),
    [
        ("-m venv", "could not make a virtual environment"),
        ("torch==", "could not install the packages"),
        ("runpy", "PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu"),
        ("sglang==", "could not install the packages"),
        ("import sglang", "could not import it"),
    ],
)
def test_an_interrupted_installation_is_seen_and_finished(directory, commands, step, problem):
    commands.fails = {step: 3}
    with pytest.raises(ConfigError, match=problem):
        install(say=lambda line: None)
    with pytest.raises(ConfigError, match=f"was interrupted; run again: {INSTALL}"):
        find_environment()
    assert read_record(directory) == Record.wanted(complete=False)
    commands.fails = {}
    assert install(say=lambda line: None) == find_environment()
    assert read_record(directory) == Record.wanted(complete=True)


def test_an_interruption_before_the_first_record_is_no_obstacle(directory, commands):
    directory.mkdir()
    (directory / f"{RECORD}.77").write_text("{")
    assert install(say=lambda line: None) == find_environment()


def test_a_record_that_is_half_written_is_that_of_an_interruption(directory):
    fake_environment(directory)
    Record.wanted(complete=True).write(directory)
    assert find_environment().directory == directory
    (record,) = directory.glob("*.json")
    record.write_text(record.read_text()[:20])
    with pytest.raises(ConfigError, match="was interrupted"):
        find_environment()


def test_other_packages_than_todays_are_installed_anew(directory, commands):
    fake_environment(directory)
    Record(sglang="0.5.22", requirements="x", complete=True).write(directory)
    with pytest.raises(ConfigError, match=r"holds SGLang 0\.5\.22 as another version of icrl installed it"):
        find_environment()
    install(say=lambda line: None)
    assert find_environment().directory == directory


def test_a_directory_with_something_else_in_it_is_left_alone(directory, commands):
    directory.mkdir()
    (directory / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="is no Python environment; name another place in ICRL_SGLANG_VENV"):
        install(say=print)
    assert commands.ran == []
    (directory / "thesis.tex").rename(directory.parent / "file")
    with pytest.raises(ConfigError, match="cannot be made"):
        install(directory.parent / "file" / "env", say=print)


def test_a_full_disk_is_found_before_anything_is_written(directory, commands, monkeypatch):
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1.2e9})())
    with pytest.raises(ConfigError, match=r"has 1.2 GB free, and SGLang needs 2"):
        install(say=lambda line: None)
    assert not directory.exists()


def test_two_installations_at_once_make_one(directory, commands):
    told = []
    threads = [threading.Thread(target=install, kwargs={"say": told.append}) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(commands.ran) == 5
    assert sum("is installed" in line for line in told) == 1
    assert json.loads(next(directory.glob("*.json")).read_text())["complete"] is True
