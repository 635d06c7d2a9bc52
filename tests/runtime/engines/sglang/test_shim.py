"""What stands in for GPUs: names exist, and nothing is ever computed."""

from __future__ import annotations

import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest

SHIM = Path(str(files("icrl.runtime.engines.sglang") / "shim"))

KERNELS = """
import triton
import triton.language as tl
from triton.runtime.jit import JITFunction
from triton.language.extra import libdevice
from packaging_like import nothing

BLOCK = tl.constexpr(64)

@triton.autotune(configs=[triton.Config({"BLOCK": 64}, num_warps=4)], key=["n"])
@triton.heuristics({"EVEN": lambda args: True})
@triton.jit(do_not_specialize=["n"])
def add(x, n: tl.constexpr):
    "Adds."
    tl.store(x, tl.load(x) + n)

@triton.jit
def plain(x):
    return tl.exp(x)

class Mine(JITFunction, some_option=True):
    pass
"""


def python(program: str, directory: Path, *paths: Path) -> subprocess.CompletedProcess[str]:
    (directory / "packaging_like.py").write_text("nothing = None")
    environment = {"PYTHONPATH": ":".join(map(str, (SHIM, *paths, directory)))}
    return subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False, cwd=directory
    )


def test_kernels_can_be_defined(tmp_path):
    done = python(f"{KERNELS}\nprint(add.__name__, plain.__doc__, triton.__version__, Mine.__mro__[1])", tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("add None 3.0.0 <class 'triton.runtime.jit.JITFunction'>")


@pytest.mark.parametrize(
    ("use", "named"),
    [
        ("add[(1,)](x=1, n=2)", "add"),
        ("plain(1)", "plain"),
        ("tl.exp(1.0)", "triton.language.exp"),
        ("libdevice.tanh(1.0)", "triton.language.extra.libdevice.tanh"),
        ("triton.testing.do_bench(lambda: 1)", "triton.testing.do_bench"),
        ("import torchaudio.functional as F; F.resample([0.0], 1, 2)", "torchaudio.functional.resample"),
        ("import sgl_kernel; sgl_kernel.rotate_input_ids_cpu()", "sgl_kernel.rotate_input_ids_cpu"),
    ],
)
def test_nothing_can_be_run(tmp_path, use, named):
    done = python(f"{KERNELS}\n{use}", tmp_path)
    assert done.returncode == 1
    assert f"NotImplementedError: {named} " in done.stderr


def test_sizes_are_right_because_buffers_have_them(tmp_path):
    program = "import triton; print(triton.cdiv(7, 2), [triton.next_power_of_2(n) for n in (1, 2, 3, 64, 65)])"
    assert python(program, tmp_path).stdout == "4 [1, 2, 4, 64, 128]\n"


def test_installed_packages_win(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "torchaudio.py").write_text("real = True")
    program = (
        "import torchaudio; print(torchaudio.real)\ntry:\n  import torchaudio.functional\nexcept ImportError: print(0)"
    )
    assert python(program, tmp_path, tmp_path / "real").stdout == "True\n0\n"


def test_other_names_stay_unknown(tmp_path):
    program = """
for statement in ("import tritonclient", "import torchaudio2", "from sgl_kernel import silu_and_mul"):
    try:
        exec(statement)
    except ImportError:
        print("unknown")
"""
    assert python(program, tmp_path).stdout == "unknown\n" * 3


def test_memory_is_pinned_in_name_only_once_lora_for_cpus_is_loaded(tmp_path):
    program = """
import sys, torch
def pinned():
    try:
        return [torch.tensor([1, 2], pin_memory=True, dtype=torch.int32).tolist(), torch.ones(1).pin_memory().tolist()]
    except RuntimeError:
        return "refused"
print(pinned())
for name in ("sglang.srt.lora.layers", "sglang.srt.lora.backend.torch_backend"):
    for finder in [*sys.meta_path]:
        if finder.__class__.__module__ == "sitecustomize":
            assert finder.find_spec(name) is None
    print(pinned())
print(torch.zeros(2, pin_memory=True).tolist(), torch.empty((3,), pin_memory=True).shape, torch.zeros(1).is_pinned())
"""
    done = python(program, tmp_path)
    assert done.stdout.splitlines() == [
        "refused",
        "refused",
        "[[1, 2], [1.0]]",
        "[0.0, 0.0] torch.Size([3]) False",
    ], done.stderr
