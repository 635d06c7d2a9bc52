"""Stand-ins for engines, servers, tokenizers and tools, for tests of your own agents and of icrl itself.

ByteTokenizer                          every byte a token, and a ChatML template
ScriptedEngine, Request, Babble        an engine that says what you tell it, and remembers what it was asked
SGLangStub, Capacity, Faults, Asked    the same as an HTTP server that speaks SGLang's protocol, fails, and is busy
run_stub                               that server in a process of its own
EchoTool, FailingTool, HangingTool     tools that answer, fail, or never answer
FaultyTool, HeavyTailedTool            tools that do all of that, and flood; tools that are mostly quick

The server is loaded when it is first used, so that the rest costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from icrl.testing.engine import Request, ScriptedEngine
from icrl.testing.script import Babble, fake_logprob
from icrl.testing.tokenizer import ByteTokenizer
from icrl.testing.tools import EchoTool, FailingTool, FaultyTool, HangingTool, HeavyTailedTool

if TYPE_CHECKING:
    from icrl.testing.stub import Asked, Capacity, Faults, SGLangStub, run_stub

__all__ = [
    "Asked",
    "Babble",
    "ByteTokenizer",
    "Capacity",
    "EchoTool",
    "FailingTool",
    "Faults",
    "FaultyTool",
    "HangingTool",
    "HeavyTailedTool",
    "Request",
    "SGLangStub",
    "ScriptedEngine",
    "fake_logprob",
    "run_stub",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'icrl.testing' has no attribute {name!r}")
    return getattr(import_module("icrl.testing.stub"), name)
