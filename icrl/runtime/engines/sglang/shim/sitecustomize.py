# SPDX-License-Identifier: Apache-2.0
# Copyright The icrl authors
"""Lets SGLang's wheel be imported where there is no GPU; Python runs this file when it starts.

icrl puts this directory on the path of the servers that it starts with `--cpu`, and of nothing else. No code of SGLang
is changed. Three things are missing there:

Packages for GPUs. SGLang's modules import triton and torchaudio at their top, to define kernels and to read sound.
Nothing on a CPU runs either, so where they are not installed their names exist: kernels can be *defined*. Running
one raises, and so does every other call, so that no result can come from here. Installed packages win.

Two operators of torchvision. Its wheel is compiled for CUDA, and its library does not load into a torch without; then
its Python part fails, because it registers gradients and shapes for operators that nobody declared. They are declared
here. They have no implementation; calling one raises torch's own error. A torchvision whose library loads has its own.

Pinned memory, which makes copies to a GPU faster. SGLang's LoRA asks for it always, and torch refuses where there is no
GPU. Once its LoRA for CPUs is loaded, memory that was to be pinned is ordinary memory.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, NoReturn

_ABSENT = frozenset({"triton", "torchaudio"})
_DEFINING = (".jit", ".autotune", ".heuristics", ".constexpr", ".constexpr_function", ".kernel_load_start_hook.add")
"""Ends of the names of what may be called: definitions of kernels, and a listener to be told when one is loaded."""

_KEPT: list[object] = []
"""A library that is collected takes its operators with it."""


def _refuse(name: str) -> NoReturn:
    raise NotImplementedError(f"{name} is not installed here: its name exists so that SGLang can be imported on a CPU")


class _Kernel:
    """What `@triton.jit` makes of a function: it can be kept, and not be run."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.__name__ = getattr(function, "__name__", "kernel")
        self.__doc__ = getattr(function, "__doc__", None)

    def __getitem__(self, grid: object) -> NoReturn:
        _refuse(self.__name__)

    def __call__(self, *_: object, **__: object) -> NoReturn:
        _refuse(self.__name__)


class _AbsentClass:
    """A class of a package that is not installed: to be named, inherited from, and listed among a kernel's settings."""

    def __init_subclass__(cls, **_: object) -> None:
        super().__init_subclass__()

    def __init__(self, *_: object, **__: object) -> None:
        pass


class _AbsentModule(ModuleType):
    """A module, or function, of a package that is not installed."""

    __path__: list[str] = []  # noqa: RUF012 - what makes a module a package

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        found: Any
        if name[0].isupper():
            found = type(name, (_AbsentClass,), {"__module__": self.__name__})
        else:
            found = sys.modules.get(f"{self.__name__}.{name}") or _AbsentModule(f"{self.__name__}.{name}")
        setattr(self, name, found)
        return found

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        if not self.__name__.endswith(_DEFINING):
            _refuse(self.__name__)
        decorates = len(arguments) == 1 and not options and callable(arguments[0])
        return _Kernel(arguments[0]) if decorates else self


class _AbsentLoader(Loader):
    """Makes absent modules."""

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _AbsentModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        if module.__name__ == "triton":
            # SGLang compares the version, and sizes buffers with these two also where no kernel runs.
            vars(module).update(
                __version__="3.0.0",
                cdiv=lambda a, b: -(a // -b),
                next_power_of_2=lambda n: 1 << max(0, n - 1).bit_length(),
            )


class _AbsentFinder(MetaPathFinder):
    """Asked after everybody else, so that installed packages win."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        top = fullname.partition(".")[0]
        if top not in _ABSENT or (top != fullname and not isinstance(sys.modules.get(top), _AbsentModule)):
            return None
        return ModuleSpec(fullname, _AbsentLoader(), is_package=True)


class _TorchvisionFinder(MetaPathFinder):
    """Asked first: declares operators between the loading of torchvision's library and their use."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.startswith("torchvision._") and fullname.endswith("_registrations"):
            sys.meta_path.remove(self)
            self._declare()
        return None

    def _declare(self) -> None:
        import torch

        if hasattr(torch.ops.torchvision, "nms"):
            return
        library: Any = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _KEPT.append(library)


class _PinnedFinder(MetaPathFinder):
    """Asked first: lets memory be pinned, in name only, from when SGLang's LoRA for CPUs is loaded."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname == "sglang.srt.lora.backend.torch_backend":
            sys.meta_path.remove(self)
            self._allow()
        return None

    def _allow(self) -> None:
        import torch

        if torch.accelerator.is_available():
            return

        def unpinned(make: Callable[..., Any]) -> Callable[..., Any]:
            return lambda *arguments, pin_memory=False, **options: make(*arguments, **options)

        for name in ("tensor", "empty", "zeros"):
            setattr(torch, name, unpinned(getattr(torch, name)))
        torch.Tensor.pin_memory = lambda self, *_: self  # type: ignore[method-assign]


sys.meta_path.insert(0, _PinnedFinder())
sys.meta_path.insert(0, _TorchvisionFinder())
sys.meta_path.append(_AbsentFinder())
