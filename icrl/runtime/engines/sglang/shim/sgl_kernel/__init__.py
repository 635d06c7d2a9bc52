# SPDX-License-Identifier: Apache-2.0
# Copyright The icrl authors
"""Stands in for SGLang's compiled kernels on a CPU that they were not built for.

With `SGLANG_USE_CPU_ENGINE=1`, SGLang imports functions named `…_cpu` from here when its modules load, and calls them
for speculative decoding, state-space models and copies between caches, none of which icrl's CPU server does; norms,
rotary embeddings, activations and sampling have fallbacks in torch, which SGLang chooses itself. So every name exists,
and none computes anything: a call raises, because a wrong number would be worse than no server.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn


def __getattr__(name: str) -> Callable[..., NoReturn]:
    if name.startswith("_") or not name.endswith("_cpu"):
        raise AttributeError(f"{__name__} stands in for SGLang's kernels and has no {name!r}")

    def missing(*_: object, **__: object) -> NoReturn:
        raise NotImplementedError(f"{__name__}.{name} needs SGLang's compiled CPU kernels, which are not installed")

    missing.__name__ = missing.__qualname__ = name
    return missing
