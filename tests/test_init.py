from __future__ import annotations

import subprocess
import sys

import pytest

import icrl

HEAVY = ("torch", "transformers", "trl", "sglang", "numpy", "numba", "bm25s", "tyro", "rich", "aiohttp", "tokenizers")


def modules_after(code: str) -> set[str]:
    """Run code in a fresh interpreter and return the libraries that it loaded."""
    script = f"import sys\n{code}\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_import_costs_nothing():
    assert modules_after("import icrl").isdisjoint(HEAVY)


def test_the_loop_needs_neither_torch_nor_numpy():
    code = """
import asyncio, icrl
from icrl.testing import EchoTool, ScriptedEngine
engine = ScriptedEngine(["<echo> hi </echo>", "<answer> yes </answer>"])
assert asyncio.run(icrl.Agent(engine, tools=[EchoTool()]).run("Is it?")).answer == "yes"
"""
    assert modules_after(code).isdisjoint({"torch", "transformers", "trl", "sglang", "numpy", "numba", "bm25s", "rich"})


def test_public_names_are_sorted_and_exist():
    assert icrl.__all__ == sorted(icrl.__all__)
    assert all(getattr(icrl, name) is not None for name in icrl.__all__)
    assert set(icrl.__all__) <= set(dir(icrl))


def test_public_names_are_those_of_their_modules():
    from icrl.errors import ToolError
    from icrl.events import fold
    from icrl.runtime.agent import Agent
    from icrl.types import Task

    assert (icrl.Agent, icrl.Task, icrl.ToolError, icrl.fold) == (Agent, Task, ToolError, fold)


def test_a_misspelt_name_is_refused_with_the_nearest():
    with pytest.raises(AttributeError, match=r"module 'icrl' has no attribute 'Agnet'\. Did you mean 'Agent'\?"):
        _ = icrl.Agnet
    with pytest.raises(ImportError, match="Trajectry"):
        from icrl import Trajectry  # noqa: F401
    assert not hasattr(icrl, "__path_of_nothing__")


def test_the_version_is_the_distributions():
    from importlib.metadata import version

    assert icrl.__version__ == version("icrl")
