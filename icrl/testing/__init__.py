"""Stand-ins for engines, tokenizers and tools, for tests of your own agents and of icrl itself.

ByteTokenizer                          every byte a token, and a ChatML template
ScriptedEngine, Request                an engine that says what you tell it, and remembers what it was asked
EchoTool, FailingTool, HangingTool     tools that answer, fail, or never answer
FaultyTool                             a tool that does all of that, and floods
"""

from __future__ import annotations

from icrl.testing.engine import Request, ScriptedEngine, fake_logprob
from icrl.testing.tokenizer import ByteTokenizer
from icrl.testing.tools import EchoTool, FailingTool, FaultyTool, HangingTool

__all__ = [
    "ByteTokenizer",
    "EchoTool",
    "FailingTool",
    "FaultyTool",
    "HangingTool",
    "Request",
    "ScriptedEngine",
    "fake_logprob",
]
